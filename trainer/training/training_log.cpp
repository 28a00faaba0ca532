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
  }
}

}  // namespace switchyard
