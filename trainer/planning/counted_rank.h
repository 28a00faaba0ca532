#pragma once

#include <cstdint>

#include "layers/transformer.h"
#include "optim/distributed_optimizer.h"
#include "parallel/parallel_layout.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// Bytes that one micro-batch takes from the workspaces of a rank.
struct ActivationPlan {
  int64_t saved = 0;        // lives from the forward pass to the backward pass
  int64_t temporaries = 0;  // the most that is allocated beside it
  // The most that the exchange of one layer sends and receives at a time; part of temporaries.
  int64_t exchange_buffers = 0;

  int64_t peak() const { return saved + temporaries; }
};

// One rank of a layout on a device that only counts (Device::counts_only): the model, the optimizer
// and a training pass as the program runs them. A plan's parameters, memory and products therefore
// follow from what the layers themselves declare, allocate and compute. Routing is balanced, and a
// rank has as many OpenMP threads as this process.
class CountedRank {
 public:
  // `config` must have been validated for `layout`, and its model.vocab_size must not be 0.
  CountedRank(const RunConfig& config, const ParallelLayout& layout, int rank = 0);

  const ParameterStore& parameters() { return model_.parameters(); }
  const DistributedOptimizer& optimizer() const { return optimizer_; }

  // Runs the forward and the backward pass of a micro-batch.
  ActivationPlan train_micro_batch();
  // Runs the forward pass of one sequence without gradients; returns the products of each part.
  Profile forward_sequence();

 private:
  StepContext context(Workspace& saved, Workspace& scratch, const MicroBatch& batch);

  Stream stream_;
  DistributedContext dist_;
  Transformer model_;
  DistributedOptimizer optimizer_;
  StepStatistics statistics_;
  int64_t micro_batch_size_;
};

}  // namespace switchyard
