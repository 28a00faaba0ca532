#include "trainer/planning/counted_rank.h"

#include <algorithm>
#include <cmath>

#include "kernels/runtime/profile.h"
#include "trainer/config/model_options.h"

namespace switchyard {
namespace {

Device device_of(const RunConfig& config) {
  const bool on_cpu = config.run.device == "cpu";
  return counting_device(on_cpu ? DeviceKind::cpu : DeviceKind::cuda);
}

// The share of the assignments that a capacity keeps if every expert gets the same number.
double kept_share(const ModelConfig& model) {
  if (model.router.capacity_factor <= 0.0) return 1.0;
  const double mean_load =
      static_cast<double>(model.seq_len * model.router.top_k) / model.num_experts;
  return std::min(1.0, std::ceil(model.router.capacity_factor * mean_load) / mean_load);
}

// On CUDA, transfers overlap with a rank's own work if every rank has a device of its own.
TransformerOptions options_of(const RunConfig& config) {
  TransformerOptions options = transformer_options(
      config, /*transfers_behind_compute=*/device_of(config).kind == DeviceKind::cuda);
  if (config.model.structure != Structure::dense) {
    options.exchange.counted_share = kept_share(config.model);
  }
  return options;
}

MicroBatch batch_of(int64_t num_sequences, int64_t seq_len, Device device) {
  return {.num_sequences = num_sequences,
          .seq_len = seq_len,
          .tokens = Tensor({num_sequences, seq_len}, DType::i32, device),
          .targets = Tensor({num_sequences, seq_len}, DType::i32, device),
          .document_start = {}};
}

}  // namespace

CountedRank::CountedRank(const RunConfig& config, const ParallelLayout& layout, int rank)
    : stream_(device_of(config)),
      dist_(DistributedContext::counting(layout, rank)),
      model_(stream_, config.model, dist_, options_of(config)),
      optimizer_(stream_, config.optimizer, model_.parameters(), dist_),
      statistics_(model_.num_moe_layers(), config.model.num_experts, stream_.device()),
      micro_batch_size_(config.train.micro_batch_size) {}

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

ActivationPlan CountedRank::train_micro_batch() {
  const Device device = stream_.device();
  Workspace saved(device), scratch(device);
  const MicroBatch batch = batch_of(micro_batch_size_, model_.config().seq_len, device);
  StepContext ctx = context(saved, scratch, batch);
  Transformer::Pass pass;
  model_.forward(ctx, pass);
  const auto kept = static_cast<int64_t>(saved.live_bytes());
  model_.backward(ctx, pass);
  return {.saved = kept,
          .temporaries = static_cast<int64_t>(saved.high_water() + scratch.high_water()) - kept,
          .exchange_buffers = model_.take_exchange_figures().buffer_bytes};
}

Profile CountedRank::forward_sequence() {
  const Device device = stream_.device();
  Workspace saved(device), scratch(device);
  const MicroBatch batch = batch_of(/*num_sequences=*/1, model_.config().seq_len, device);
  StepContext ctx = context(saved, scratch, batch);
  Profiler profiler(stream_);
  stream_.set_profiler(&profiler);
  model_.forward_loss(ctx);
  stream_.set_profiler(nullptr);
  return profiler.take();
}

}  // namespace switchyard
