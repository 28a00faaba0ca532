#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/moe/router.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"
#include "layers/micro_batch.h"
#include "layers/profile.h"
#include "layers/step_statistics.h"
#include "parallel/distributed_context.h"

namespace switchyard {

// Each loss is divided once, where its gradient begins, by what the *global* batch holds. From
// there on every gradient, and every reduction over ranks or micro-batches, is a plain sum.
struct LossScales {
  float per_target = 1.0f;    // 1 / target tokens in the global batch
  float per_token = 1.0f;     // 1 / tokens
  float per_sequence = 1.0f;  // 1 / sequences
};

// How often each expert was chosen in the whole global batch, per MoE layer.
using GlobalExpertCounts = std::vector<std::vector<double>>;

class AttentionObserver;

// What one pass over one micro-batch works with.
struct StepContext {
  Stream& stream;
  Workspace& workspace;
  const DistributedContext& dist;
  const MicroBatch& batch;
  LossScales scales;
  StepStatistics* statistics = nullptr;   // may be null
  Profiler* profiler = nullptr;           // may be null
  AttentionObserver* observer = nullptr;  // may be null; see attention_observer.h
  // For balance_scope: global_batch under gradient accumulation, where the counts of later
  // micro-batches are not known yet: from a counting pass. Null: counted in this pass.
  const GlobalExpertCounts* global_counts = nullptr;
  // Decoding ignores capacity_factor: what it drops would depend on how many tokens come at once.
  bool decoding = false;
  // Called in the backward pass when the gradients of this stage (ParameterStore::begin_stage) and
  // of all after it are final. May be empty.
  std::function<void(int stage)> gradients_are_final = {};

  int64_t tokens() const { return batch.batch * batch.seq_len; }
  // Sequence parallelism: between blocks a tp rank holds this share of the tokens.
  int64_t local_tokens() const { return tokens() / dist.tp().size(); }
  TokenRange local_range() const { return {dist.tp().rank() * local_tokens(), batch.seq_len}; }

  // Host values where ops of the stream can read them, until the workspace is released: the view
  // itself on the CPU, so the values must live as long.
  ConstTensorView on_device(ConstTensorView host) const {
    if (stream.device() == host.device()) return host;
    TensorView moved = workspace.take(host.shape(), host.dtype());
    copy(stream, host, moved);
    return moved;
  }

  // Replicated over tp: counted by one rank of the group.
  bool counts_replicated() const { return statistics != nullptr && dist.tp().rank() == 0; }
};

}  // namespace switchyard
