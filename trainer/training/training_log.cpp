#include "trainer/training/training_log.h"

#include <fmt/core.h>

#include "kernels/runtime/check.h"
#include "trainer/config/run_paths.h"

namespace switchyard {
TrainingLog::TrainingLog(const std::filesystem::path& dir, bool tensorboard, int64_t last_step,
                         std::ostream& out, const ConsoleOptions& console)
    : console_(out, console), metrics_(RunPaths(dir).metrics(), last_step) {
  if (tensorboard) tensorboard_.emplace(RunPaths(dir).tensorboard(), last_step);
}

void TrainingLog::record(const StepMetrics& metrics) {
  console_.step(metrics);
  try {
    metrics_.append(metrics);
    if (tensorboard_) tensorboard_->add_scalars(metrics.step, tensorboard_scalars(metrics));
    failing_ = false;
  } catch (const Error& error) {
    if (!failing_) {
      console_.message(
          fmt::format("warning: step {} is missing from the log: {}", metrics.step, error.what()));
    }
    failing_ = true;
    if (missing_++ == 0) first_missing_ = metrics.step;
    last_missing_ = metrics.step;
    problem_ = error.what();
  }
}

void TrainingLog::say_what_is_missing() {
  if (missing_ == 0) return;
  console_.message(fmt::format("warning: {} steps from {} to {} are missing from the log: {}",
                               missing_, first_missing_, last_missing_, problem_));
}

}  // namespace switchyard
