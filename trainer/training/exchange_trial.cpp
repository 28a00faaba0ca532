#include "trainer/training/exchange_trial.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <span>

#include "kernels/basic/elementwise.h"
#include "kernels/basic/random.h"

namespace switchyard {
namespace {

constexpr std::array<int, 5> kCandidates = {1, 2, 4, 8, 16};
// The first round opens no connections, but takes memory.
constexpr int kRounds = 4;
constexpr double kTolerance = 1.02;

// One MoE layer, and the rows of a micro-batch.
class Trial {
 public:
  Trial(Stream& stream, MoeLayer& layer, const ModelConfig& config, DType dtype,
        const DistributedContext& dist, int64_t num_sequences)
      : stream_(stream),
        layer_(layer),
        dist_(dist),
        batch_{.num_sequences = num_sequences,
               .seq_len = config.seq_len,
               .tokens = {},
               .targets = {},
               .document_start = {}},
        saved_(stream.device()),
        scratch_(stream.device()) {
    const Shape shape{num_sequences * config.seq_len / dist.tp().size(), config.hidden};
    x_ = Tensor(shape, dtype, stream.device());
    y_ = Tensor(shape, dtype, stream.device());
    Tensor drawn(shape, DType::f32, stream.device());
    const auto key = static_cast<uint64_t>(dist.rank());
    init_normal(stream, {key, stream_id("exchange trial")}, 1.0f, shape, Shape{0, 0}, drawn);
    cast(stream, drawn, x_);
    stream.synchronize();
  }

  // The time of a forward pass on the slowest rank.
  double seconds() {
    dist_.world().barrier(stream_);
    const auto begin = std::chrono::steady_clock::now();
    StepContext ctx{.stream = stream_,
                    .saved = saved_,
                    .scratch = scratch_,
                    .dist = dist_,
                    .batch = batch_,
                    .scales = {}};
    MoeLayer::Saved saved;
    layer_.forward(ctx, x_, y_, saved);
    stream_.synchronize();
    saved_.reset();
    scratch_.reset();
    double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    dist_.world().all_reduce(stream_, view_of(std::span(&seconds, 1)), ReduceOp::max);
    return seconds;
  }

 private:
  Stream& stream_;
  MoeLayer& layer_;
  const DistributedContext& dist_;
  MicroBatch batch_;
  Workspace saved_, scratch_;
  Tensor x_, y_;
};

}  // namespace

ChosenChunks choose_exchange_chunks(Stream& stream, Transformer& model,
                                    const DistributedContext& dist, int64_t num_sequences) {
  Trial trial(stream, *model.first_moe_layer(), model.config(), model.compute_dtype(), dist,
              num_sequences);
  std::array<double, kCandidates.size()> best;
  best.fill(std::numeric_limits<double>::infinity());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < kCandidates.size(); ++i) {
      model.set_exchange_chunks(kCandidates[i]);
      const double seconds = trial.seconds();
      if (round > 0) best[i] = std::min(best[i], seconds);
    }
  }
  const double fastest = *std::ranges::min_element(best);
  size_t chosen = 0;
  while (best[chosen] > kTolerance * fastest) ++chosen;
  model.set_exchange_chunks(kCandidates[chosen]);
  std::string times;
  for (size_t i = 0; i < kCandidates.size(); ++i) {
    times += fmt::format("{}{}: {:.1f} ms", i == 0 ? "" : ", ", kCandidates[i], 1e3 * best[i]);
  }
  return {kCandidates[chosen],
          fmt::format("tokens travel in {} chunks (forward pass of a layer in {})",
                      kCandidates[chosen], times)};
}

}  // namespace switchyard
