#include "trainer/training/metrics.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <type_traits>

#include "kernels/runtime/check.h"
#include "trainer/files/outputs.h"
#include "trainer/training/metric_records.h"

namespace switchyard {
namespace {

const std::filesystem::path& own_metrics(const std::filesystem::path& path) {
  require_replaceable({"run.dir", path}, "the metrics of a run",
                      [](const auto& old) { return begins_with_part_of(old, "{\"step\":"); });
  return path;
}

}  // namespace

std::span<const MetricField> step_metric_fields() {
  using M = StepMetrics;
  static constexpr MetricField kFields[] = {
      {"step", "", OverRanks::same, &M::step, "", "counts from 1"},
      {"tokens", "", OverRanks::same, &M::tokens, "",
       "target tokens since the run began, this step's included"},
      {"loss", "nat", OverRanks::sum, &M::loss, "train/loss",
       "cross-entropy per target token of the global batch"},
      {"aux_loss", "", OverRanks::sum, &M::aux_loss, "router/aux_loss",
       "balance loss, mean over the MoE layers, without its coefficient; 1.0 is balanced"},
      {"z_loss", "", OverRanks::sum, &M::z_loss, "router/z_loss",
       "mean over the MoE layers, without its coefficient"},
      {"grad_norm", "", OverRanks::same, &M::grad_norm, "train/grad_norm",
       "of the whole model, before clipping"},
      {"lr", "", OverRanks::same, &M::lr, "train/lr", "learning rate"},
      {"step_ms", "ms", OverRanks::same, &M::step_ms, "speed/step_ms",
       "wall time of the whole step on rank 0"},
      {"forward_ms", "ms", OverRanks::max, &M::forward_ms, "",
       "time of the forward passes; on a GPU measured by its events, as are the next three"},
      {"backward_ms", "ms", OverRanks::max, &M::backward_ms, "", "time of the backward passes"},
      {"exchange_ms", "ms", OverRanks::max, &M::exchange_ms, "speed/exchange_ms",
       "the time that the passes spend in the exchange's transfers, or wait for them; transfers "
       "that overlap with other work are not counted"},
      {"optimizer_ms", "ms", OverRanks::max, &M::optimizer_ms, "",
       "time of the update, with the reduction of gradients and the gathering of weights"},
      {"data_ms", "ms", OverRanks::max, &M::data_ms, "",
       "time of waiting for the batch, which is read during the step before"},
      {"tokens_per_s", "1/s", OverRanks::same, &M::tokens_per_s, "speed/tokens_per_s",
       "of all ranks"},
      {"mfu", "0..1", OverRanks::same, &M::mfu, "speed/mfu",
       "model FLOP/s divided by the FLOP/s of the cores in use"},
      {"exchange_bytes", "byte", OverRanks::sum, &M::exchange_bytes, "",
       "token rows that left a rank"},
      {"exchange_bytes_between_hosts", "byte", OverRanks::sum, &M::exchange_bytes_between_hosts, "",
       "of these, to ranks of other machines"},
      {"max_load_ratio", "", OverRanks::same, &M::max_load_ratio, "router/max_load_ratio",
       "greatest load of an expert divided by the mean; 1.0 is balanced"},
      {"dropped_tokens", "", OverRanks::sum, &M::dropped_tokens, "router/dropped_tokens",
       "(token, expert) assignments over capacity"},
      {"peak_memory_bytes", "byte", OverRanks::max, &M::peak_memory_bytes, "",
       "peak of the process; on a GPU the memory in use there"},
      {"skipped", "", OverRanks::same, &M::skipped, "",
       "true: a gradient was not finite, and nothing was updated"},
      {"val_loss", "nat", OverRanks::same, &M::val_loss, "validation/loss",
       "held-out loss, if evaluated after this step"},
      {"val_losses", "nat", OverRanks::same, &M::val_losses, "validation/loss",
       "the same of each file, by its name, if `data.validation` lists several"},
      {"expert_load", "0..1", OverRanks::same, &M::expert_load, "",
       "if evaluated: share of the assignments per MoE layer and expert in the training batch of "
       "this step, not in the held-out text; every row sums to 1"},
  };
  return kFields;
}

std::string describe_step_metrics() {
  std::string text = "| Key | Unit | Over the ranks | Meaning |\n|---|---|---|---|\n";
  for (const MetricField& field : step_metric_fields()) {
    const std::string_view over_ranks = field.over_ranks == OverRanks::sum   ? "sum"
                                        : field.over_ranks == OverRanks::max ? "greatest"
                                                                             : "";
    text +=
        fmt::format("| `{}` | {} | {} | {} |\n", field.name, field.unit, over_ranks, field.meaning);
  }
  return text;
}

void add_metrics(RankReduction& reduction, StepMetrics& metrics) {
  for (const MetricField& field : step_metric_fields()) {
    if (field.over_ranks == OverRanks::same) continue;
    std::visit(
        [&](auto member) {
          using Value = std::remove_reference_t<decltype(metrics.*member)>;
          if constexpr (std::is_same_v<Value, double> || std::is_same_v<Value, int64_t>) {
            if (field.over_ranks == OverRanks::sum) reduction.sum(metrics.*member);
            if (field.over_ranks == OverRanks::max) reduction.max(metrics.*member);
          } else {
            fail("{} cannot be reduced over ranks", field.name);
          }
        },
        field.member);
  }
}

std::vector<std::pair<std::string, double>> tensorboard_scalars(const StepMetrics& metrics) {
  std::vector<std::pair<std::string, double>> scalars;
  for (const MetricField& field : step_metric_fields()) {
    if (field.tensorboard_tag.empty()) continue;
    std::visit(
        [&](auto member) {
          const auto& value = metrics.*member;
          using Value = std::remove_cvref_t<decltype(value)>;
          if constexpr (std::is_arithmetic_v<Value>) {
            scalars.emplace_back(field.tensorboard_tag, static_cast<double>(value));
          } else if constexpr (std::is_same_v<Value, std::optional<double>>) {
            if (value) scalars.emplace_back(field.tensorboard_tag, *value);
          } else if constexpr (std::is_same_v<Value, NamedFigures>) {
            for (const auto& [name, figure] : value) {
              scalars.emplace_back(fmt::format("{}/{}", field.tensorboard_tag, name), figure);
            }
          } else {
            fail("{} is not a scalar", field.name);
          }
        },
        field.member);
  }
  return scalars;
}

std::string to_json(const StepMetrics& metrics) {
  nlohmann::ordered_json record;
  for (const MetricField& field : step_metric_fields()) {
    std::visit(
        [&](auto member) {
          const auto& value = metrics.*member;
          using Value = std::remove_cvref_t<decltype(value)>;
          if constexpr (std::is_same_v<Value, std::optional<double>>) {
            if (value) record[std::string(field.name)] = *value;
          } else if constexpr (std::is_arithmetic_v<Value>) {
            record[std::string(field.name)] = value;
          } else if constexpr (std::is_same_v<Value, NamedFigures>) {
            for (const auto& [name, figure] : value) record[std::string(field.name)][name] = figure;
          } else {
            if (!value.empty()) record[std::string(field.name)] = value;
          }
        },
        field.member);
  }
  return record.dump();
}

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t last_step)
    : file_(own_metrics(path), last_metric_record(path, last_step).end) {}

void MetricsFile::append(const StepMetrics& metrics) { file_.append(to_json(metrics) + '\n'); }

}  // namespace switchyard
