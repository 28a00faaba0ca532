#pragma once

#include <array>
#include <chrono>
#include <string_view>

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

// Adds the lifetime of the object to a phase. A null profile costs nothing. Not nested.
class Timed {
 public:
  Timed(Profile* profile, Phase phase) : profile_(profile), phase_(phase) {
    if (profile_) begin_ = Clock::now();
  }
  ~Timed() {
    if (profile_) {
      (*profile_)[phase_] += std::chrono::duration<double>(Clock::now() - begin_).count();
    }
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  Profile* profile_;
  Phase phase_;
  Clock::time_point begin_;
};

}  // namespace switchyard
