#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "parallel/rank_reduction.h"
#include "trainer/files/append_file.h"

namespace switchyard {

// Figures of several things, by the names of these.
using NamedFigures = std::vector<std::pair<std::string, double>>;

// The figures of one optimizer step over the whole global batch. step_metric_fields says what each
// means; the log, TensorBoard and the table of docs/formats.md are made from it.
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
  int64_t exchange_bytes_between_hosts = 0;
  double max_load_ratio = 0.0;
  int64_t dropped_tokens = 0;
  int64_t peak_memory_bytes = 0;
  bool skipped = false;
  std::optional<double> val_loss;
  NamedFigures val_losses;                       // left out when empty
  std::vector<std::vector<double>> expert_load;  // [MoE layers][experts]; left out when empty
};

// How the ranks' figures are combined.
enum class OverRanks { same, sum, max };

struct MetricField {
  using Member = std::variant<int64_t StepMetrics::*, double StepMetrics::*, bool StepMetrics::*,
                              std::optional<double> StepMetrics::*, NamedFigures StepMetrics::*,
                              std::vector<std::vector<double>> StepMetrics::*>;
  std::string_view name;  // the key in metrics.jsonl
  std::string_view unit;
  OverRanks over_ranks;  // `same`: every rank knows the whole figure, or rank 0 alone needs it
  Member member;
  std::string_view tensorboard_tag;  // empty: not shown in TensorBoard; of a name: TAG/NAME
  std::string_view meaning;
};

// All fields, in the order of a line of metrics.jsonl.
std::span<const MetricField> step_metric_fields();

// The table of docs/formats.md, in Markdown.
std::string describe_step_metrics();

// Adds those of a rank's figures to `reduction` that are sums or maxima over the ranks.
void add_metrics(RankReduction& reduction, StepMetrics& metrics);

// The tags and values that TensorBoard shows.
std::vector<std::pair<std::string, double>> tensorboard_scalars(const StepMetrics& metrics);

// One JSON object without a line break. Numbers that are not finite become null, as JSON has none.
std::string to_json(const StepMetrics& metrics);

// metrics.jsonl of a run. Used by one rank.
class MetricsFile {
 public:
  // Opens the file for appending and truncates it after the last record of a step up to
  // `last_step`: a resumed run takes later steps again, and a killed run may have left half a line.
  // Throws Error on failure, also if the file is not the metrics of a run.
  MetricsFile(const std::filesystem::path& path, int64_t last_step);

  // On return the operating system has the line. Throws Error if the line could not be written
  // whole (disk full); the file then ends as it did before.
  void append(const StepMetrics& metrics);

 private:
  AppendFile file_;
};

}  // namespace switchyard
