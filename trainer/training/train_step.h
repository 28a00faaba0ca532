#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/runtime/stopwatch.h"
#include "layers/micro_batch.h"
#include "layers/transformer.h"
#include "optim/distributed_optimizer.h"
#include "parallel/distributed_context.h"
#include "trainer/training/metrics.h"

namespace switchyard {

// The result of a step, the same on every rank.
struct StepReport {
  StepMetrics metrics;  // only those that the step itself measures
  GlobalExpertCounts expert_counts;
  bool stop_requested = false;  // on any rank
};

// Runs optimizer steps. Collective over the world.
class TrainStep {
 public:
  TrainStep(Stream& stream, Transformer& model, DistributedOptimizer& optimizer,
            const DistributedContext& dist);
  // Makes a TrainStep for evaluation only.
  TrainStep(Stream& stream, Transformer& model, const DistributedContext& dist);

  // Takes one step over this rank's micro-batches of the global batch; every rank has the same
  // number of micro-batches.
  //   data_ms         of this rank; the report has the slowest rank's
  //   stop_requested  whether this rank is asked to stop; called at the end of the step. The report
  //                   says whether any rank is
  StepReport run(std::span<const MicroBatch> micro_batches, const GlobalBatchSize& size, double lr,
                 double data_ms = 0.0, const std::function<bool()>& stop_requested = {});

  // Returns only the losses and the counts of experts, as sums over the target tokens.
  StepReport evaluate(std::span<const MicroBatch> micro_batches);

 private:
  std::span<const MicroBatch> on_device(std::span<const MicroBatch> micro_batches);
  StepContext context(const MicroBatch& batch, const GlobalBatchSize& size);
  void reset_figures();
  void forward_backward(StepContext& ctx);
  void forward_losses(std::span<const MicroBatch> micro_batches, const GlobalBatchSize& size);
  struct Reduced {
    StepReport report;
    // [MoE layers, experts] f64 in scratch memory, on the device; empty in a dense model
    ConstTensorView expert_counts;
  };
  Reduced reduce(StepMetrics mine, const std::function<bool()>& stop_requested = {});
  ConstTensorView counts_among(ConstTensorView sums) const;

  Stream& stream_;
  Transformer& model_;
  DistributedOptimizer* optimizer_ = nullptr;
  const DistributedContext& dist_;
  Workspace saved_, scratch_, plans_;
  std::vector<MicroBatch> copied_;  // the step's micro-batches on the device; empty on the CPU
  StepStatistics statistics_;
  Stopwatch forward_time_, backward_time_, optimizer_time_;
};

}  // namespace switchyard
