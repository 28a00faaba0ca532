#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "parallel/rank_reduction.h"
#include "trainer/files/append_file.h"

namespace switchyard {

// The figures of one optimizer step over the whole global batch. What each means stands in
// step_metric_fields, which the log, TensorBoard and docs/formats.md are made of.
struct StepMetrics {
  int64_t step = 0;
  int64_t tokens = 0;
  double loss = 0.0;
  double aux_loss = 0.0;
  double z_loss = 0.0;
  double grad_norm = 0.0;
  double lr = 0.0;
  double step_ms = 0.0;
  double forward_ms = 0.0;
  double backward_ms = 0.0;
  double exchange_ms = 0.0;
  double optimizer_ms = 0.0;
  double data_ms = 0.0;
  double tokens_per_s = 0.0;
  double mfu = 0.0;
  int64_t exchange_bytes = 0;
  double max_load_ratio = 0.0;
  int64_t dropped_tokens = 0;
  int64_t peak_memory_bytes = 0;
  bool skipped = false;
  std::optional<double> val_loss;
  std::vector<std::vector<double>> expert_load;  // [MoE layers][experts]; left out when empty
};

// How the ranks' figures become one.
enum class OverRanks { same, sum, max };

struct MetricField {
  using Member = std::variant<int64_t StepMetrics::*, double StepMetrics::*, bool StepMetrics::*,
                              std::optional<double> StepMetrics::*,
                              std::vector<std::vector<double>> StepMetrics::*>;
  std::string_view name;  // the key in metrics.jsonl
  std::string_view unit;
  OverRanks over_ranks;  // `same`: every rank knows the whole figure, or rank 0 alone needs it
  Member member;
  std::string_view tensorboard_tag;  // empty: not there
  std::string_view meaning;
};

// In the order of a line of metrics.jsonl.
std::span<const MetricField> step_metric_fields();

// The table of docs/formats.md, in Markdown.
std::string describe_step_metrics();

// Names those of a rank's figures that are sums or maxima over the ranks.
void add_metrics(RankReduction& reduction, StepMetrics& metrics);

// What TensorBoard shows: tags and values.
std::vector<std::pair<std::string, double>> tensorboard_scalars(const StepMetrics& metrics);

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
