#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layers/micro_batch.h"
#include "layers/transformer.h"
#include "optim/distributed_optimizer.h"
#include "parallel/distributed_context.h"

namespace switchyard {

// The figures of one optimizer step, of the whole global batch, the same on every rank.
struct StepReport {
  double loss = 0.0;      // cross-entropy per target token
  double aux_loss = 0.0;  // mean over the MoE layers, without its coefficient
  double z_loss = 0.0;    // mean over the MoE layers, without its coefficient
  double grad_norm = 0.0;
  bool skipped = false;
  int64_t dropped_tokens = 0;  // (token, expert) assignments over capacity
  int64_t exchange_bytes = 0;  // token rows that left a rank, summed over ranks
  GlobalExpertCounts expert_counts;
  // Seconds of the stream's work, on a device by its own events; of the slowest rank. What goes on
  // behind the passes is not in the exchange's.
  double forward_seconds = 0.0;
  double backward_seconds = 0.0;
  double exchange_seconds = 0.0;
  double optimizer_seconds = 0.0;
  bool stop_requested = false;  // on any rank

  // Greatest load of an expert by the mean load, over all MoE layers; 1.0 is balanced.
  double max_load_ratio() const;
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
  //   stop_requested  this rank's wish; the report tells whether any rank has it
  StepReport run(std::span<const MicroBatch> micro_batches, const LossScales& scales, double lr,
                 bool stop_requested = false);

  // The losses alone: evaluation.
  StepReport evaluate(std::span<const MicroBatch> micro_batches, const LossScales& scales);

  void set_profiler(Profiler* profiler) { profiler_ = profiler; }
  size_t workspace_high_water() const { return workspace_.high_water(); }

 private:
  std::span<const MicroBatch> on_device(std::span<const MicroBatch> micro_batches);
  StepContext context(const MicroBatch& batch, const LossScales& scales);
  GlobalExpertCounts count_experts(std::span<const MicroBatch> micro_batches,
                                   const LossScales& scales);
  StepReport reduce(bool stop_requested);

  Stream& stream_;
  Transformer& model_;
  DistributedOptimizer* optimizer_ = nullptr;
  const DistributedContext& dist_;
  Workspace workspace_;
  std::vector<MicroBatch> copied_;  // of the step's micro-batches; not on the CPU
  Stopwatch optimizer_time_;
  StepStatistics statistics_;
  Profiler* profiler_ = nullptr;
};

}  // namespace switchyard
