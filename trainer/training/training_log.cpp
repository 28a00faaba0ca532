#include "trainer/training/training_log.h"

#include <fmt/core.h>

#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/config/run_paths.h"

namespace switchyard {
namespace {

std::vector<TensorboardWriter::Scalar> scalars_of(const StepMetrics& m) {
  std::vector<TensorboardWriter::Scalar> scalars = {
      {"train/loss", m.loss},
      {"train/grad_norm", m.grad_norm},
      {"train/lr", m.lr},
      {"router/aux_loss", m.aux_loss},
      {"router/z_loss", m.z_loss},
      {"router/max_load_ratio", m.max_load_ratio},
      {"router/dropped_tokens", static_cast<double>(m.dropped_tokens)},
      {"speed/tokens_per_s", m.tokens_per_s},
      {"speed/mfu", m.mfu},
      {"speed/step_ms", m.step_ms},
      {"speed/exchange_ms", m.exchange_ms},
  };
  if (m.val_loss) scalars.emplace_back("validation/loss", *m.val_loss);
  return scalars;
}

}  // namespace

TrainingLog::TrainingLog(const std::filesystem::path& dir, bool tensorboard, int64_t last_step,
                         std::ostream& out, const ConsoleOptions& console)
    : console_(out, console), metrics_(RunPaths(dir).metrics(), last_step) {
  if (tensorboard) tensorboard_.emplace(RunPaths(dir).tensorboard(), last_step);
}

void TrainingLog::record(const StepMetrics& metrics) {
  console_.step(metrics);
  try {
    metrics_.append(metrics);
    if (tensorboard_) tensorboard_->add_scalars(metrics.step, scalars_of(metrics));
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
