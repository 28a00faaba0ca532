#pragma once

#include <filesystem>
#include <iosfwd>
#include <optional>
#include <string_view>

#include "trainer/training/console.h"
#include "trainer/training/metrics.h"
#include "trainer/training/tensorboard_writer.h"

namespace switchyard {

// The outputs of a run's steps: `dir`/metrics.jsonl, TensorBoard's event files in
// `dir`/tensorboard, and the console. Used by rank 0.
class TrainingLog {
 public:
  // `last_step` is the restored one, 0 for a fresh run. Throws Error if a file cannot be opened.
  TrainingLog(const std::filesystem::path& dir, bool tensorboard, int64_t last_step,
              std::ostream& out, const ConsoleOptions& console);

  // A file that cannot be written (disk full) does not end the training: the console reports it
  // once, and later steps are written again.
  void record(const StepMetrics& metrics);
  // Says again, at the end of the training, which steps are missing.
  void say_what_is_missing();
  void message(std::string_view text) { console_.message(text); }

 private:
  Console console_;
  MetricsFile metrics_;
  std::optional<TensorboardWriter> tensorboard_;
  // The steps of which a file could not be written, and why the last of them could not.
  int64_t missing_ = 0, first_missing_ = 0, last_missing_ = 0;
  std::string problem_;
  bool failing_ = false;  // the last write failed
};

}  // namespace switchyard
