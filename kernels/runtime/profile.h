#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "kernels/runtime/device.h"
#include "kernels/runtime/stopwatch.h"

namespace switchyard {

// The parts of a model that the work of a pass is shared out to. `moe_*` together are the MoE layer.
enum class Part {
  embedding,
  attention,
  dense_feed_forward,
  moe_router,
  moe_expert_products,  // the grouped matrix products
  moe_dense_products,   // descend, ascend and shared experts
  moe_exchange,         // plan, permutation and transfer
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
                                                              "moe: dense products",
                                                              "moe: exchange",
                                                              "moe: activation",
                                                              "norms",
                                                              "head and loss"};
  return names[static_cast<size_t>(part)];
}

// Seconds per part, added up.
struct Profile {
  std::array<double, kNumParts> seconds{};
  double& operator[](Part part) { return seconds[static_cast<size_t>(part)]; }
  double operator[](Part part) const { return seconds[static_cast<size_t>(part)]; }
};

// Takes the time that the parts of a stream's work need: see Stream::set_profiler.
class Profiler {
 public:
  explicit Profiler(Stream& stream) : stream_(stream) {
    for (int i = 0; i < kNumParts; ++i) stopwatches_.emplace_back(stream.device());
  }

  void start(Part part) { stopwatches_[static_cast<size_t>(part)].start(stream_); }
  void stop(Part part) { stopwatches_[static_cast<size_t>(part)].stop(stream_); }

  // Since the last call; waits for the stream.
  Profile take() {
    Profile profile;
    for (size_t i = 0; i < stopwatches_.size(); ++i) {
      profile.seconds[i] = stopwatches_[i].take_seconds();
    }
    return profile;
  }

 private:
  Stream& stream_;
  std::vector<Stopwatch> stopwatches_;
};

// Adds the time of what the stream does in the scope to a part, where the stream has a profiler;
// without one it costs nothing. Scopes are not nested.
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
