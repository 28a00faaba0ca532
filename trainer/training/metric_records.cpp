#include "trainer/training/metric_records.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

namespace switchyard {
namespace {

// The step of a record; nothing if the line is not a record.
std::optional<int64_t> step_of(const std::string& line) {
  const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) return std::nullopt;
  const auto step = record.find("step");
  if (step == record.end() || !step->is_number_integer()) return std::nullopt;
  // A greater number would be taken for a negative one.
  if (step->is_number_unsigned() && !std::in_range<int64_t>(step->get<uint64_t>())) {
    return std::nullopt;
  }
  return step->get<int64_t>();
}

}  // namespace

MetricRecord last_metric_record(const std::filesystem::path& path, int64_t last_step) {
  MetricRecord last;
  if (!std::filesystem::is_regular_file(path)) return last;  // a device may never end
  std::ifstream file(path, std::ios::binary);
  int64_t position = 0;
  for (std::string line; std::getline(file, line);) {
    if (file.eof()) break;  // a line without a line break is incomplete
    position += static_cast<int64_t>(line.size()) + 1;
    const std::optional<int64_t> step = step_of(line);
    if (step && *step > last_step) break;
    if (step) last = {*step, position};
  }
  return last;
}

std::optional<double> held_out_loss_of(const std::filesystem::path& path, int64_t step) {
  if (!std::filesystem::is_regular_file(path)) return std::nullopt;
  std::ifstream file(path, std::ios::binary);
  for (std::string line; std::getline(file, line);) {
    if (step_of(line) != step) continue;
    const auto record = nlohmann::json::parse(line);
    const auto loss = record.find("val_loss");
    if (loss != record.end() && loss->is_number()) return loss->get<double>();
  }
  return std::nullopt;
}

}  // namespace switchyard
