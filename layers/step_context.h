#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/moe/router.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"
#include "kernels/runtime/to_device.h"
#include "layers/micro_batch.h"
#include "layers/step_statistics.h"
#include "parallel/distributed_context.h"

namespace switchyard {

// Each loss is divided once, where its gradient begins, by the size of the *global* batch. From
// there on every gradient, and every reduction over ranks or micro-batches, is a plain sum.
struct LossScales {
  float per_target = 1.0f;  // 1 / target tokens of the global batch
  float per_token = 1.0f;   // 1 / tokens of the global batch
};

// The size of a global batch.
struct GlobalBatchSize {
  int64_t targets = 0;  // tokens that count in the cross-entropy
  int64_t tokens = 0;

  LossScales loss_scales() const;
};

// How often each expert was chosen in the whole global batch, per MoE layer.
using GlobalExpertCounts = std::vector<std::vector<double>>;

class AttentionObserver;
struct CachedStep;

// The context of one pass over one micro-batch. The owner of the two workspaces resets them; every
// layer leaves `scratch` as it found it.
struct StepContext {
  Stream& stream;
  Workspace& saved;    // tensors that the backward pass needs; one workspace per pass in flight
  Workspace& scratch;  // tensors that are released before a call returns; one workspace per rank
  const DistributedContext& dist;
  const MicroBatch& batch;
  LossScales scales;
  // Tokens of the global batch; only balance_scope: global_batch reads it.
  int64_t global_tokens = 0;
  StepStatistics* statistics = nullptr;   // may be null
  AttentionObserver* observer = nullptr;  // may be null; see attention_observer.h
  // The result of a counting pass, for balance_scope: global_batch under gradient accumulation,
  // where the counts of later micro-batches are not known yet. Null: this pass counts.
  const GlobalExpertCounts* global_counts = nullptr;
  // Ignores capacity_factor. Decoding needs this, because drops would depend on how many tokens a
  // call takes.
  bool dropless = false;
  // Of a pass that reads one token per sequence into a cache (layers/decoding/cached_step.h); else
  // null.
  const CachedStep* step = nullptr;
  // Called in the backward pass when the gradients of this stage (ParameterStore::begin_stage) and
  // of all after it are final. May be empty.
  std::function<void(int stage)> gradients_are_final = {};

  int64_t tokens() const { return batch.num_sequences * batch.seq_len; }
  // Sequence parallelism: between blocks a tp rank holds this share of the tokens.
  int64_t local_tokens() const { return tokens() / dist.tp().size(); }
  TokenRange local_range() const { return {dist.tp().rank() * local_tokens(), batch.seq_len}; }

  // Makes host values readable for ops of the stream, for as long as scratch memory that is taken
  // at this point lives. The workspace owns the values.
  template <class T>
  ConstTensorView on_device(std::vector<T> values) const {
    return to_device(stream, scratch, std::move(values));
  }

  // Whether this rank counts figures that are replicated over tp; one rank of the group does.
  bool counts_replicated() const { return statistics != nullptr && dist.tp().rank() == 0; }
};

}  // namespace switchyard
