#include "trainer/training/train_step.h"

#include <algorithm>
#include <chrono>

#include "kernels/runtime/check.h"
#include "parallel/rank_reduction.h"
#include "trainer/training/peak_memory.h"

namespace switchyard {
namespace {

// Greatest load of an expert divided by the mean load, over all MoE layers.
double max_load_ratio(const GlobalExpertCounts& expert_counts) {
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

}  // namespace

TrainStep::TrainStep(Stream& stream, Transformer& model, DistributedOptimizer& optimizer,
                     const DistributedContext& dist)
    : TrainStep(stream, model, dist) {
  optimizer_ = &optimizer;
}

TrainStep::TrainStep(Stream& stream, Transformer& model, const DistributedContext& dist)
    : stream_(stream),
      model_(model),
      dist_(dist),
      saved_(stream.device()),
      scratch_(stream.device()),
      plans_(stream.device()),
      statistics_(model.num_moe_layers(), model.config().num_experts, stream.device()),
      forward_time_(stream.device()),
      backward_time_(stream.device()),
      optimizer_time_(stream.device()) {}

// The micro-batches in memory that ops can read: copies on the device, or themselves on the CPU.
std::span<const MicroBatch> TrainStep::on_device(std::span<const MicroBatch> micro_batches) {
  if (stream_.device().kind == DeviceKind::cpu) return micro_batches;
  copied_.resize(micro_batches.size());
  for (size_t i = 0; i < copied_.size(); ++i) copy_to_device(stream_, micro_batches[i], copied_[i]);
  return copied_;
}

StepContext TrainStep::context(const MicroBatch& batch, const GlobalBatchSize& size) {
  return {.stream = stream_,
          .saved = saved_,
          .scratch = scratch_,
          .dist = dist_,
          .batch = batch,
          .scales = size.loss_scales(),
          .global_tokens = size.tokens,
          .statistics = &statistics_};
}

void TrainStep::reset_figures() {
  statistics_.reset(stream_);
  model_.take_exchange_figures();  // discards those of passes before this step
}

void TrainStep::forward_backward(StepContext& ctx) {
  Transformer::Pass pass;
  pass.plan_memory = &plans_;
  dist_.set_phase(Phase::forward);
  {
    const ScopedTimer timer(forward_time_, stream_);
    model_.forward(ctx, pass);
  }
  dist_.set_phase(Phase::backward);
  const ScopedTimer timer(backward_time_, stream_);
  model_.backward(ctx, pass);
  saved_.reset();
  scratch_.reset();
  plans_.reset();
}

StepReport TrainStep::run(std::span<const MicroBatch> micro_batches, const GlobalBatchSize& size,
                          double lr, double data_ms, const std::function<bool()>& stop_requested) {
  require(optimizer_ != nullptr, "this TrainStep evaluates only");
  micro_batches = on_device(micro_batches);
  const RouterConfig& router = model_.config().router;
  GlobalExpertCounts counts;
  // The balance loss over the global batch needs the counts of later micro-batches, so all of them
  // run forward once before.
  const bool count_first = micro_batches.size() > 1 && router.aux_loss_coef > 0.0 &&
                           router.balance_scope == BalanceScope::global_batch;
  if (count_first) {
    dist_.set_phase(Phase::counting_experts);
    forward_losses(micro_batches, size);
    counts = reduce({}).report.expert_counts;
  }
  reset_figures();
  for (const MicroBatch& batch : micro_batches) {
    StepContext ctx = context(batch, size);
    if (count_first) ctx.global_counts = &counts;
    // If transfers do not overlap with compute, early reductions would only add waiting for ranks.
    if (&batch == &micro_batches.back() && dist_.transfers_behind_compute()) {
      ctx.gradients_are_final = [&](int stage) { optimizer_->start_reduction(stream_, stage); };
    }
    forward_backward(ctx);
  }

  optimizer_time_.start(stream_);
  optimizer_->start_step(stream_, scratch_, lr);
  optimizer_time_.stop(stream_);

  StepMetrics mine;
  mine.data_ms = data_ms;
  auto [report, counts_on_device] = reduce(std::move(mine), stop_requested);
  // Where the new values do not travel behind other work, they are gathered here.
  const auto begin = std::chrono::steady_clock::now();
  const OptimizerStepResult update = optimizer_->finish_step(stream_);
  const std::chrono::duration<double, std::milli> gathering =
      std::chrono::steady_clock::now() - begin;
  report.metrics.optimizer_ms += gathering.count();
  report.metrics.lr = lr;
  report.metrics.grad_norm = update.grad_norm;
  report.metrics.skipped = update.skipped;
  if (!update.skipped && counts_on_device) {
    model_.update_balancing_biases(stream_, counts_on_device);
  }
  return std::move(report);
}

StepReport TrainStep::evaluate(std::span<const MicroBatch> micro_batches) {
  dist_.set_phase(Phase::evaluation);
  forward_losses(on_device(micro_batches), {.targets = 1, .tokens = 1});
  return reduce({}).report;
}

void TrainStep::forward_losses(std::span<const MicroBatch> micro_batches,
                               const GlobalBatchSize& size) {
  reset_figures();
  for (const MicroBatch& batch : micro_batches) {
    StepContext ctx = context(batch, size);
    model_.forward_loss(ctx);
    saved_.reset();
    scratch_.reset();
  }
}

// The counts are the first sums.
ConstTensorView TrainStep::counts_among(ConstTensorView sums) const {
  const int64_t layers = model_.num_moe_layers(), experts = model_.config().num_experts;
  if (layers == 0) return {};
  return sums.rows(0, layers * experts).reshape({layers, experts});
}

// Combines this rank's figures with those of all other ranks.
TrainStep::Reduced TrainStep::reduce(StepMetrics mine,
                                     const std::function<bool()>& stop_requested) {
  // The host waits for the device here, so what follows is known when the step has ended.
  const StepFigures figures = statistics_.read(stream_);
  const ExchangeFigures exchange = model_.take_exchange_figures();
  StepReport report{.metrics = std::move(mine), .expert_counts = {}};
  StepMetrics& metrics = report.metrics;
  metrics.loss = figures.loss;
  metrics.dropped_tokens = static_cast<int64_t>(figures.dropped);
  const auto layers = static_cast<double>(figures.moe_layers.size());
  for (const StepFigures::MoeLayer& layer : figures.moe_layers) {
    metrics.aux_loss += layer.aux_loss / layers;
    metrics.z_loss += layer.z_loss / layers;
    report.expert_counts.push_back(layer.expert_counts);
  }
  metrics.exchange_bytes = exchange.row_bytes;
  metrics.exchange_bytes_between_hosts = exchange.row_bytes_between_hosts;
  metrics.forward_ms = 1e3 * forward_time_.take_seconds();
  metrics.backward_ms = 1e3 * backward_time_.take_seconds();
  metrics.optimizer_ms = 1e3 * optimizer_time_.take_seconds();
  metrics.exchange_ms = 1e3 * exchange.seconds;
  metrics.peak_memory_bytes = peak_memory_bytes(stream_.device());

  RankReduction reduction(dist_.world());
  for (std::vector<double>& counts : report.expert_counts) reduction.sum(counts);
  add_metrics(reduction, metrics);
  int64_t ranks_that_stop = stop_requested && stop_requested() ? 1 : 0;
  reduction.sum(ranks_that_stop);
  const TensorView sums = reduction.run(stream_, scratch_);
  report.stop_requested = ranks_that_stop > 0;
  metrics.max_load_ratio = max_load_ratio(report.expert_counts);
  return {std::move(report), counts_among(sums)};
}

}  // namespace switchyard
