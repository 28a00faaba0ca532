#include "trainer/planning/counted_rank.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "trainer/config/model_options.h"
#include "trainer/planning/work_trace.h"

namespace switchyard {
namespace {

Device device_of(const RunConfig& config, const CountedRankOptions& options) {
  const bool on_cpu = config.run.device == "cpu";
  return counting_device(options.device.value_or(on_cpu ? DeviceKind::cpu : DeviceKind::cuda));
}

// The share of the assignments that a capacity keeps if every expert gets the same number.
double kept_share(const ModelConfig& model) {
  if (model.router.capacity_factor <= 0.0) return 1.0;
  const double mean_load =
      static_cast<double>(model.seq_len * model.router.top_k) / model.num_experts;
  return std::min(1.0, std::ceil(model.router.capacity_factor * mean_load) / mean_load);
}

// On CUDA, transfers overlap with a rank's own work if every rank has a device of its own.
bool transfers_behind_compute(const RunConfig& config, const CountedRankOptions& options) {
  return options.transfers_behind_compute.value_or(device_of(config, options).kind ==
                                                   DeviceKind::cuda);
}

TransformerOptions counted_options(const RunConfig& config, const CountedRankOptions& options) {
  TransformerOptions result =
      transformer_options(config, transfers_behind_compute(config, options));
  if (transfers_behind_compute(config, options) &&
      device_of(config, options).kind == DeviceKind::cpu) {
    result.bucket_elements = ParameterStore::kBucketElementsOverMpi;
  }
  result.exchange.counted_load = options.load;
  if (config.model.structure != Structure::dense) {
    result.exchange.counted_share = kept_share(config.model);
  }
  return result;
}

MicroBatch batch_of(int64_t num_sequences, int64_t seq_len, Device device) {
  return {.num_sequences = num_sequences,
          .seq_len = seq_len,
          .tokens = Tensor({num_sequences, seq_len}, DType::i32, device),
          .targets = Tensor({num_sequences, seq_len}, DType::i32, device),
          .document_start = {}};
}

// Hosts matter only where rows are spread inside them.
HostOptions hosts_of(const RunConfig& config, const ParallelLayout& layout, int ranks_per_host) {
  HostOptions hosts{.groups = config.parallel.deduplicate == Deduplicate::host};
  if (!hosts.groups || ranks_per_host == 0) return hosts;
  for (int i = 0; i < layout.world_size(); ++i) hosts.hosts.push_back(i / ranks_per_host);
  return hosts;
}

}  // namespace

CountedRank::CountedRank(const RunConfig& config, const ParallelLayout& layout,
                         const CountedRankOptions& options)
    : config_(config),
      options_(options),
      stream_(device_of(config, options)),
      dist_(DistributedContext::counting(layout, options.rank, options.trace,
                                         hosts_of(config, layout, options.ranks_per_host))),
      model_(stream_, config.model, dist_, counted_options(config, options)),
      optimizer_(stream_, config.optimizer, model_.parameters(), dist_),
      statistics_(model_.num_moe_layers(), config.model.num_experts, stream_.device()) {
  if (options_.trace) options_.trace->take();  // Drawing the initial values is no part of a step.
  stream_.set_observer(options_.trace);
}

StepContext CountedRank::context(Workspace& saved, Workspace& scratch, const MicroBatch& batch) {
  return {.stream = stream_,
          .saved = saved,
          .scratch = scratch,
          .dist = dist_,
          .batch = batch,
          .scales = {},
          .global_tokens = batch.num_sequences * batch.seq_len,
          .statistics = &statistics_};
}

ActivationPlan CountedRank::run_micro_batch(bool is_last) {
  const Device device = stream_.device();
  Workspace saved(device), scratch(device), plans(device);
  const MicroBatch batch =
      batch_of(config_.train.micro_batch_size, model_.config().seq_len, device);
  StepContext ctx = context(saved, scratch, batch);
  if (is_last && transfers_behind_compute(config_, options_)) {
    ctx.gradients_are_final = [this](int stage) { optimizer_.start_reduction(stream_, stage); };
  }
  Transformer::Pass pass;
  pass.plan_memory = &plans;
  if (options_.trace) options_.trace->set_phase(Phase::forward);
  model_.forward(ctx, pass);
  const auto kept = static_cast<int64_t>(saved.live_bytes() + plans.live_bytes());
  if (options_.trace) options_.trace->set_phase(Phase::backward);
  model_.backward(ctx, pass);
  return {.saved = kept,
          .temporaries =
              static_cast<int64_t>(saved.high_water() + scratch.high_water() + plans.high_water()) -
              kept,
          .exchange_buffers = model_.take_exchange_figures().buffer_bytes,
          .scratch = static_cast<int64_t>(scratch.high_water())};
}

int64_t CountedRank::run_optimizer() {
  if (options_.trace) options_.trace->set_phase(Phase::optimizer);
  Workspace scratch(stream_.device());
  optimizer_.start_step(stream_, scratch, config_.optimizer.lr);
  dist_.world().all_reduce(
      stream_,
      scratch.take({int64_t{model_.num_moe_layers()} * config_.model.num_experts}, DType::f64),
      ReduceOp::sum);
  optimizer_.finish_step(stream_);
  return static_cast<int64_t>(scratch.high_water());
}

void CountedRank::forward_sequence() {
  const Device device = stream_.device();
  Workspace saved(device), scratch(device);
  const MicroBatch batch = batch_of(/*num_sequences=*/1, model_.config().seq_len, device);
  StepContext ctx = context(saved, scratch, batch);
  model_.forward_loss(ctx);
}

}  // namespace switchyard
