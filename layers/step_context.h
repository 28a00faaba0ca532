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

// Each loss is divided once, where its gradient begins, by what the *global* batch holds. From
// there on every gradient, and every reduction over ranks or micro-batches, is a plain sum.
struct LossScales {
  float per_target = 1.0f;  // 1 / target tokens of the global batch
  float per_token = 1.0f;   // 1 / tokens of the global batch
};

// What a global batch holds.
struct GlobalBatchSize {
  int64_t targets = 0;  // tokens that count in the cross-entropy
  int64_t tokens = 0;

  LossScales loss_scales() const;
};

// How often each expert was chosen in the whole global batch, per MoE layer.
using GlobalExpertCounts = std::vector<std::vector<double>>;

class AttentionObserver;

// What one pass over one micro-batch works with. The owner of the two workspaces resets them; every
// layer leaves `scratch` as it found it.
struct StepContext {
  Stream& stream;
  Workspace& saved;    // what a forward pass leaves for its backward pass: one per pass in flight
  Workspace& scratch;  // what nobody needs when a call returns: one per rank
  const DistributedContext& dist;
  const MicroBatch& batch;
  LossScales scales;
  // Of the global batch; read with balance_scope: global_batch alone.
  int64_t global_tokens = 0;
  StepStatistics* statistics = nullptr;   // may be null
  AttentionObserver* observer = nullptr;  // may be null; see attention_observer.h
  // For balance_scope: global_batch under gradient accumulation, where the counts of later
  // micro-batches are not known yet: from a counting pass. Null: counted in this pass.
  const GlobalExpertCounts* global_counts = nullptr;
  // Ignores capacity_factor. Decoding needs this, because what is dropped would depend on how many
  // tokens come at once.
  bool dropless = false;
  // Called in the backward pass when the gradients of this stage (ParameterStore::begin_stage) and
  // of all after it are final. May be empty.
  std::function<void(int stage)> gradients_are_final = {};

  int64_t tokens() const { return batch.num_sequences * batch.seq_len; }
  // Sequence parallelism: between blocks a tp rank holds this share of the tokens.
  int64_t local_tokens() const { return tokens() / dist.tp().size(); }
  TokenRange local_range() const { return {dist.tp().rank() * local_tokens(), batch.seq_len}; }

  // Host values where ops of the stream can read them, for as long as scratch memory that is taken
  // at this point. The values belong to the workspace from here on.
  template <class T>
  ConstTensorView on_device(std::vector<T> values) const {
    return to_device(stream, scratch, std::move(values));
  }

  // Replicated over tp: counted by one rank of the group.
  bool counts_replicated() const { return statistics != nullptr && dist.tp().rank() == 0; }
};

}  // namespace switchyard
