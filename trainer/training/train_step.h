#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/runtime/stopwatch.h"
#include "layers/micro_batch.h"
#include "layers/transformer.h"
#include "optim/distributed_optimizer.h"
#include "parallel/distributed_context.h"
#include "trainer/training/metrics.h"

namespace switchyard {

// What a step has found, the same on every rank.
struct StepReport {
  StepMetrics metrics;  // those that come of the step itself
  GlobalExpertCounts expert_counts;
  bool stop_requested = false;  // on any rank
};

// Runs optimizer steps. Collective over the world.
class TrainStep {
 public:
  TrainStep(Stream& stream, Transformer& model, DistributedOptimizer& optimizer,
            const DistributedContext& dist);
  // For evaluation alone.
  TrainStep(Stream& stream, Transformer& model, const DistributedContext& dist);

  // One step over this rank's micro-batches of the global batch; every rank has the same number of
  // them.
  //   data_ms         this rank's; the report has the slowest rank's
  //   stop_requested  this rank's wish; the report tells whether any rank has it
  StepReport run(std::span<const MicroBatch> micro_batches, const GlobalBatchSize& size, double lr,
                 double data_ms = 0.0, bool stop_requested = false);

  // The losses and the counts of experts alone, as sums over the target tokens.
  StepReport evaluate(std::span<const MicroBatch> micro_batches);

 private:
  std::span<const MicroBatch> on_device(std::span<const MicroBatch> micro_batches);
  StepContext context(const MicroBatch& batch, const GlobalBatchSize& size);
  void reset_figures();
  void forward_backward(StepContext& ctx);
  void forward_losses(std::span<const MicroBatch> micro_batches, const GlobalBatchSize& size);
  StepReport reduce(StepMetrics mine, bool stop_requested);

  Stream& stream_;
  Transformer& model_;
  DistributedOptimizer* optimizer_ = nullptr;
  const DistributedContext& dist_;
  Workspace saved_, scratch_;
  std::vector<MicroBatch> copied_;  // of the step's micro-batches; not on the CPU
  StepStatistics statistics_;
  Stopwatch forward_time_, backward_time_, optimizer_time_;
};

}  // namespace switchyard
