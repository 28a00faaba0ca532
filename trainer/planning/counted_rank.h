#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "kernels/runtime/profile.h"
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
  int64_t scratch = 0;  // the part of temporaries whose arena the optimizer's step uses, too

  int64_t peak() const { return saved + temporaries; }
  // The optimizer's step takes `bytes` of that arena after the passes.
  void add_optimizer(int64_t bytes) { temporaries += std::max<int64_t>(bytes - scratch, 0); }
};

class WorkTrace;

struct CountedRankOptions {
  int rank = 0;
  // Whether transfers run while the rank computes; else: where the device does it.
  std::optional<bool> transfers_behind_compute = {};
  std::optional<DeviceKind> device = {};  // else: of the configuration
  int ranks_per_host = 0;                 // 0: all ranks on one host
  double load = 1.0;                      // rows of this rank's experts, in those of the mean rank
  WorkTrace* trace = nullptr;             // sees all work of the passes; must outlive the rank
};

// One rank of a layout on a device that only counts (Device::counts_only): the model, the optimizer
// and a training pass as the program runs them. A plan's parameters, memory and products therefore
// follow from what the layers themselves declare, allocate and compute. Routing is balanced but for
// options.load, and a rank has as many OpenMP threads as this process.
class CountedRank {
 public:
  // `config` must have been validated for `layout`, and its model.vocab_size must not be 0.
  CountedRank(const RunConfig& config, const ParallelLayout& layout,
              const CountedRankOptions& options = {});

  const ParameterStore& parameters() { return model_.parameters(); }
  const DistributedOptimizer& optimizer() const { return optimizer_; }

  // Runs the forward and the backward pass of a micro-batch. In the last one of a step, gradients
  // are reduced behind the backward pass where transfers run behind compute.
  ActivationPlan run_micro_batch(bool is_last);
  // Runs the optimizer's step, and the reduction of the step's figures. Returns the bytes of
  // scratch that they take.
  int64_t run_optimizer();
  // Runs the forward pass of one sequence without gradients, for stream().observer().
  void forward_sequence();

  Stream& stream() { return stream_; }

 private:
  StepContext context(Workspace& saved, Workspace& scratch, const MicroBatch& batch);

  RunConfig config_;
  CountedRankOptions options_;
  Stream stream_;
  DistributedContext dist_;
  Transformer model_;
  DistributedOptimizer optimizer_;
  StepStatistics statistics_;
};

}  // namespace switchyard
