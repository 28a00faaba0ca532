#pragma once

#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/runtime/device.h"
#include "kernels/runtime/stopwatch.h"

namespace switchyard {

// The parts of a model whose time and products are counted separately. `moe_*` are the MoE layer.
enum class Part {
  embedding,
  attention,
  dense_feed_forward,
  moe_router,
  moe_expert_products,  // the grouped matrix products
  moe_shared_experts,
  moe_narrowing,  // BigMac's descend and ascend
  moe_exchange,   // plan, permutation and transfer
  moe_activation,
  norms,
  head_and_loss,
};
inline constexpr int kNumParts = static_cast<int>(Part::head_and_loss) + 1;

constexpr std::string_view to_string(Part part) {
  constexpr std::array<std::string_view, kNumParts> names = {"embedding",
                                                             "attention",
                                                             "dense feed-forward",
                                                             "moe: router",
                                                             "moe: expert products",
                                                             "moe: shared experts",
                                                             "moe: descend and ascend",
                                                             "moe: exchange",
                                                             "moe: activation",
                                                             "norms",
                                                             "head and loss"};
  return names[static_cast<size_t>(part)];
}

// The totals of each part.
struct Profile {
  std::array<double, kNumParts> seconds{};
  std::array<Tally, kNumParts> tallies{};  // on a device that only counts

  double seconds_of(Part part) const { return seconds[static_cast<size_t>(part)]; }
  const Tally& tally_of(Part part) const { return tallies[static_cast<size_t>(part)]; }
};

// Measures the time of the parts of a stream's work; see Stream::set_profiler.
class Profiler {
 public:
  explicit Profiler(Stream& stream) : stream_(stream) {
    for (int i = 0; i < kNumParts; ++i) stopwatches_.emplace_back(stream.device());
  }

  void start(Part part) {
    if (const Tally* tally = stream_.tally()) before_ = *tally;
    stopwatches_[static_cast<size_t>(part)].start(stream_);
  }
  void stop(Part part) {
    stopwatches_[static_cast<size_t>(part)].stop(stream_);
    if (const Tally* tally = stream_.tally()) {
      Tally& of_part = tallies_[static_cast<size_t>(part)];
      of_part.products += tally->products - before_.products;
      of_part.attention += tally->attention - before_.attention;
    }
  }

  // Returns the totals since the last call; waits for the stream.
  Profile take() {
    Profile profile{.seconds = {}, .tallies = std::exchange(tallies_, {})};
    for (size_t i = 0; i < stopwatches_.size(); ++i) {
      profile.seconds[i] = stopwatches_[i].take_seconds();
    }
    return profile;
  }

 private:
  Stream& stream_;
  std::vector<Stopwatch> stopwatches_;
  std::array<Tally, kNumParts> tallies_{};
  Tally before_;  // the stream's tally when the current part began
};

// Adds the time of the stream's work in the scope to a part, if the stream has a profiler; without
// one it costs nothing. Scopes must not be nested.
class ScopedPart {
 public:
  ScopedPart(Stream& stream, Part part) : profiler_(stream.profiler()), part_(part) {
    if (profiler_) profiler_->start(part_);
  }
  ~ScopedPart() {
    if (profiler_) profiler_->stop(part_);
  }
  ScopedPart(const ScopedPart&) = delete;
  ScopedPart& operator=(const ScopedPart&) = delete;

 private:
  Profiler* profiler_;
  Part part_;
};

}  // namespace switchyard
