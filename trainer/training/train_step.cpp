#include "trainer/training/train_step.h"

#include <algorithm>

#include "kernels/runtime/check.h"

namespace switchyard {

double StepReport::max_load_ratio() const {
  double worst = 0.0;
  for (const std::vector<double>& counts : expert_counts) {
    double total = 0.0;
    for (const double count : counts) total += count;
    if (total <= 0.0) continue;
    const double mean = total / static_cast<double>(counts.size());
    worst = std::max(worst, *std::max_element(counts.begin(), counts.end()) / mean);
  }
  return worst;
}

TrainStep::TrainStep(Stream& stream, Transformer& model, DistributedOptimizer& optimizer,
                     const DistributedContext& dist)
    : TrainStep(stream, model, dist) {
  optimizer_ = &optimizer;
}

TrainStep::TrainStep(Stream& stream, Transformer& model, const DistributedContext& dist)
    : stream_(stream),
      model_(model),
      dist_(dist),
      workspace_(stream.device()),
      optimizer_time_(stream.device()),
      statistics_(model.num_moe_layers(), model.config().num_experts, stream.device()) {}

// The micro-batches where ops can read them.
std::span<const MicroBatch> TrainStep::on_device(std::span<const MicroBatch> micro_batches) {
  if (stream_.device().kind == DeviceKind::cpu) return micro_batches;
  copied_.resize(micro_batches.size());
  for (size_t i = 0; i < copied_.size(); ++i) copy_to_device(stream_, micro_batches[i], copied_[i]);
  return copied_;
}

StepContext TrainStep::context(const MicroBatch& batch, const LossScales& scales) {
  return {.stream = stream_,
          .workspace = workspace_,
          .dist = dist_,
          .batch = batch,
          .scales = scales,
          .statistics = &statistics_,
          .profiler = profiler_};
}

StepReport TrainStep::run(std::span<const MicroBatch> micro_batches, const LossScales& scales,
                          double lr, bool stop_requested) {
  require(optimizer_ != nullptr, "this TrainStep evaluates only");
  micro_batches = on_device(micro_batches);
  const RouterConfig& router = model_.config().router;
  GlobalExpertCounts counts;
  const bool count_first = micro_batches.size() > 1 && router.aux_loss_coef > 0.0 &&
                           router.balance_scope == BalanceScope::global_batch;
  if (count_first) counts = count_experts(micro_batches, scales);
  statistics_.reset(stream_);
  for (const MicroBatch& batch : micro_batches) {
    StepContext ctx = context(batch, scales);
    if (count_first) ctx.global_counts = &counts;
    // Where transfers take the rank's own time, early ones would only add waiting for the others.
    if (&batch == &micro_batches.back() && dist_.transfers_behind_compute()) {
      ctx.gradients_are_final = [&](int stage) { optimizer_->start_reduction(stream_, stage); };
    }
    model_.forward_backward(ctx);
  }

  optimizer_time_.start(stream_);
  const OptimizerStepResult update = optimizer_->step(stream_, workspace_, lr);
  optimizer_time_.stop(stream_);

  StepReport report = reduce(stop_requested);
  report.grad_norm = update.grad_norm;
  report.skipped = update.skipped;
  if (!update.skipped) model_.update_balancing_biases(stream_, report.expert_counts);
  return report;
}

StepReport TrainStep::evaluate(std::span<const MicroBatch> micro_batches,
                               const LossScales& scales) {
  statistics_.reset(stream_);
  for (const MicroBatch& batch : on_device(micro_batches)) {
    StepContext ctx = context(batch, scales);
    model_.forward_loss(ctx);
  }
  return reduce(/*stop_requested=*/false);
}

// The balance loss over the global batch needs the counts of micro-batches that come later, so they
// all run forward once before.
GlobalExpertCounts TrainStep::count_experts(std::span<const MicroBatch> micro_batches,
                                            const LossScales& scales) {
  statistics_.reset(stream_);
  for (const MicroBatch& batch : micro_batches) {
    StepContext ctx = context(batch, scales);
    model_.forward_loss(ctx);
  }
  return reduce(/*stop_requested=*/false).expert_counts;
}

StepReport TrainStep::reduce(bool stop_requested) {
  const StepFigures figures = statistics_.read(stream_);
  const size_t layers = figures.moe_layers.size();
  std::vector<double> sums = {figures.loss,
                              static_cast<double>(statistics_.traffic.row_bytes),
                              stop_requested ? 1.0 : 0.0,
                              0.0,
                              0.0,
                              figures.dropped};
  for (const StepFigures::MoeLayer& layer : figures.moe_layers) {
    sums[3] += layer.aux_loss / static_cast<double>(layers);
    sums[4] += layer.z_loss / static_cast<double>(layers);
    sums.insert(sums.end(), layer.expert_counts.begin(), layer.expert_counts.end());
  }
  dist_.world().all_reduce(stream_, view_of(std::span(sums)), ReduceOp::sum);
  std::vector<double> slowest = {statistics_.forward.take_seconds(),
                                 statistics_.backward.take_seconds(),
                                 model_.take_exchange_seconds(), optimizer_time_.take_seconds()};
  dist_.world().all_reduce(stream_, view_of(std::span(slowest)), ReduceOp::max);

  StepReport report;
  report.loss = sums[0];
  report.exchange_bytes = static_cast<int64_t>(sums[1]);
  report.stop_requested = sums[2] > 0.0;
  report.aux_loss = sums[3];
  report.z_loss = sums[4];
  report.dropped_tokens = static_cast<int64_t>(sums[5]);
  report.forward_seconds = slowest[0];
  report.backward_seconds = slowest[1];
  report.exchange_seconds = slowest[2];
  report.optimizer_seconds = slowest[3];
  auto counts = sums.begin() + 6;
  for (const StepFigures::MoeLayer& layer : figures.moe_layers) {
    const auto end = counts + static_cast<std::ptrdiff_t>(layer.expert_counts.size());
    report.expert_counts.emplace_back(counts, end);
    counts = end;
  }
  return report;
}

}  // namespace switchyard
