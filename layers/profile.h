#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "kernels/runtime/stopwatch.h"

namespace switchyard {

// Where the time of a training step goes. `moe_*` together are the MoE layer.
enum class Phase {
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
inline constexpr int kNumPhases = static_cast<int>(Phase::head_and_loss) + 1;

constexpr std::string_view to_string(Phase phase) {
  constexpr std::array<std::string_view, kNumPhases> names = {"embedding",
                                                              "attention",
                                                              "dense feed-forward",
                                                              "moe: router",
                                                              "moe: expert products",
                                                              "moe: dense products",
                                                              "moe: exchange",
                                                              "moe: activation",
                                                              "norms",
                                                              "head and loss"};
  return names[static_cast<size_t>(phase)];
}

// Seconds per phase, added up.
struct Profile {
  std::array<double, kNumPhases> seconds{};
  double& operator[](Phase phase) { return seconds[static_cast<size_t>(phase)]; }
  double operator[](Phase phase) const { return seconds[static_cast<size_t>(phase)]; }
};

// Takes the time of the phases of a stream's work.
class Profiler {
 public:
  explicit Profiler(Stream& stream) : stream_(stream) {
    for (int i = 0; i < kNumPhases; ++i) stopwatches_.emplace_back(stream.device());
  }

  void start(Phase phase) { stopwatches_[static_cast<size_t>(phase)].start(stream_); }
  void stop(Phase phase) { stopwatches_[static_cast<size_t>(phase)].stop(stream_); }

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

// Adds what the stream does in the scope to a phase. A null profiler costs nothing. Not nested.
class Timed {
 public:
  Timed(Profiler* profiler, Phase phase) : profiler_(profiler), phase_(phase) {
    if (profiler_) profiler_->start(phase_);
  }
  ~Timed() {
    if (profiler_) profiler_->stop(phase_);
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  Profiler* profiler_;
  Phase phase_;
};

}  // namespace switchyard
