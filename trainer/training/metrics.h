#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trainer/files/append_file.h"

namespace switchyard {

// The figures of one optimizer step over the whole global batch: one line of metrics.jsonl, with
// these names as keys. Times are those of the slowest rank.
struct StepMetrics {
  int64_t step = 0;    // counts from 1
  int64_t tokens = 0;  // target tokens trained on since the run began, this step's included
  double loss = 0.0;   // cross-entropy per target token
  double aux_loss = 0.0;
  double z_loss = 0.0;
  double grad_norm = 0.0;  // before clipping
  double lr = 0.0;
  double step_ms = 0.0;
  double forward_ms = 0.0;
  double backward_ms = 0.0;
  double exchange_ms = 0.0;
  double optimizer_ms = 0.0;
  double data_ms = 0.0;
  double tokens_per_s = 0.0;
  double mfu = 0.0;                // model FLOP/s by the FLOP/s of the cores in use; 0..1
  int64_t exchange_bytes = 0;      // token rows that left a rank, summed over ranks
  double max_load_ratio = 0.0;     // greatest load of an expert by the mean; 1.0 is balanced
  int64_t dropped_tokens = 0;      // (token, expert) assignments over capacity
  int64_t peak_memory_bytes = 0;   // of the rank that needed most
  bool skipped = false;            // a gradient was not finite; nothing was updated
  std::optional<double> val_loss;  // when evaluated after this step
  // Share of the assignments per MoE layer and expert; every row sums to 1. Left out when empty.
  std::vector<std::vector<double>> expert_load;
};

// One JSON object without a line break. Numbers that are not finite become null, as JSON has none.
std::string to_json(const StepMetrics& metrics);

// metrics.jsonl of a run. For one rank.
class MetricsFile {
 public:
  // Opens the file for appending and cuts it back to the last record of a step up to `last_step`:
  // later ones belong to a past that a resumed run takes again, and a killed run may have left half
  // a line. Throws Error if that is impossible.
  MetricsFile(const std::filesystem::path& path, int64_t last_step);

  // The line is in the hands of the operating system on return. Throws Error if it could not be
  // written whole (disk full); the file then ends as it did before.
  void append(const StepMetrics& metrics);

 private:
  AppendFile file_;
};

}  // namespace switchyard
