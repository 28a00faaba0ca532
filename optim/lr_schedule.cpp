#include "optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace switchyard {
namespace {

// 0 at or before `begin`, 1 at or after begin + length.
double progress(int64_t step, int64_t begin, int64_t length) {
  if (length <= 0) return step >= begin ? 1.0 : 0.0;
  return std::clamp(static_cast<double>(step - begin) / static_cast<double>(length), 0.0, 1.0);
}

}  // namespace

double learning_rate(const OptimizerConfig& config, int64_t step, int64_t max_steps) {
  const ScheduleConfig& schedule = config.schedule;
  if (step < schedule.warmup_steps) {
    return config.lr * static_cast<double>(step + 1) /
           static_cast<double>(schedule.warmup_steps + 1);
  }
  const double fall = config.lr - schedule.min_lr;
  switch (schedule.type) {
    case ScheduleType::constant:
      break;
    case ScheduleType::cosine: {
      const int64_t length =
          schedule.decay_steps > 0 ? schedule.decay_steps : max_steps - schedule.warmup_steps;
      const double done = progress(step, schedule.warmup_steps, length);
      return schedule.min_lr + fall * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
    }
    case ScheduleType::wsd:
      return config.lr -
             fall * progress(step, max_steps - schedule.decay_steps, schedule.decay_steps);
  }
  return config.lr;
}

}  // namespace switchyard
