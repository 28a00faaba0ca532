#include "trainer/planning/memory_advice.h"

#include <fmt/format.h>

#include <optional>
#include <vector>

#include "trainer/config/config_error.h"
#include "trainer/config/config_reader.h"
#include "trainer/planning/plan.h"

namespace switchyard {
namespace {

// Advice names at most this many times the ranks.
constexpr int kMostTimesTheRanks = 1024;

MemoryPlan plan_memory(const RunConfig& config, int world_size) {
  return make_plan(config, ParallelLayout(world_size, config.parallel.tp, config.parallel.ep))
      .memory;
}

bool is_valid(const RunConfig& config, int world_size) {
  try {
    validate_config({config, {}}, world_size);
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

// Finds changes of one configuration that need no more memory than a limit.
class Advisor {
 public:
  Advisor(const RunConfig& config, int world_size, int64_t available)
      : config_(config), world_size_(world_size), available_(available) {}

  std::vector<std::string> changes() const {
    std::vector<std::string> found;
    const auto add = [&](const std::optional<std::string>& change) {
      if (change) found.push_back(*change);
    };
    const auto smaller = smaller_micro_batch(config_);
    add(smaller);
    if (!config_.parallel.recompute) add(recompute(/*with_smaller_micro_batch=*/!smaller));
    add(more_ranks());
    return found;
  }

 private:
  // The memory that `config` needs, in parentheses, if it is valid and fits.
  std::optional<std::string> fitting(const RunConfig& config, int world_size) const {
    if (!is_valid(config, world_size)) return {};
    const int64_t needed = plan_memory(config, world_size).total();
    if (needed > available_) return {};
    return fmt::format(" ({})", format_bytes(needed));
  }

  std::optional<std::string> smaller_micro_batch(RunConfig config) const {
    while (--config.train.micro_batch_size > 0) {
      if (const auto needs = fitting(config, world_size_)) {
        return fmt::format("train.micro_batch_size={}{}", config.train.micro_batch_size, *needs);
      }
    }
    return {};
  }

  std::optional<std::string> recompute(bool with_smaller_micro_batch) const {
    RunConfig config = config_;
    config.parallel.recompute = true;
    const std::string name = "parallel.recompute=true";
    if (const auto needs = fitting(config, world_size_)) return name + *needs;
    if (!with_smaller_micro_batch) return {};
    const auto smaller = smaller_micro_batch(config);
    return smaller ? std::optional(name + " " + *smaller) : std::nullopt;
  }

  // The fewest ranks that split optimizer state, or experts, finely enough to fit.
  std::optional<std::string> more_ranks() const {
    for (int times = 2; times <= kMostTimesTheRanks; times *= 2) {
      const int ranks = times * world_size_;
      RunConfig config = config_;
      if (const auto needs = fitting(config, ranks))
        return fmt::format("{} ranks{}", ranks, *needs);
      config.parallel.ep *= times;
      if (const auto needs = fitting(config, ranks)) {
        return fmt::format("{} ranks with parallel.ep={}{}", ranks, config.parallel.ep, *needs);
      }
    }
    return {};
  }

  const RunConfig& config_;
  int world_size_;
  int64_t available_;
};

}  // namespace

std::string advise_on_memory(const RunConfig& config, int world_size, int64_t available) {
  const MemoryPlan plan = plan_memory(config, world_size);
  const int64_t needed = plan.total();
  std::string text = fmt::format(
      "a rank needs {} by the plan (weights, gradients and optimizer state {}, activations of a "
      "micro-batch {}), and has {}",
      format_bytes(needed),
      format_bytes(plan.parameters + plan.gradients + plan.main_weights + plan.optimizer_state),
      format_bytes(plan.activations.peak()), format_bytes(available));
  if (needed <= available) {
    return text +
           ": something else uses the device, or some experts get far more than their share; free "
           "the device, or lower train.micro_batch_size, or set parallel.recompute=true";
  }
  const std::vector<std::string> changes = Advisor(config, world_size, available).changes();
  if (changes.empty())
    return text + "; only a smaller model, or a shorter model.seq_len, would fit";
  text += "; these would fit: " + changes.front();
  for (size_t i = 1; i < changes.size(); ++i) text += ", or " + changes[i];
  return text;
}

}  // namespace switchyard
