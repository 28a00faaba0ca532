#include "trainer/training/metrics.h"

#include <fstream>
#include <nlohmann/json.hpp>

namespace switchyard {
namespace {

// The step of a record, nothing for anything else.
std::optional<int64_t> step_of(const std::string& line) {
  const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) return std::nullopt;
  const auto step = record.find("step");
  if (step == record.end() || !step->is_number_integer()) return std::nullopt;
  return step->get<int64_t>();
}

// Where the last whole record of a step up to `last_step` ends. Steps ascend within the file.
int64_t end_of_step(const std::filesystem::path& path, int64_t last_step) {
  std::ifstream file(path, std::ios::binary);
  int64_t end = 0, position = 0;
  for (std::string line; std::getline(file, line);) {
    if (file.eof()) break;  // no line break: torn
    position += static_cast<int64_t>(line.size()) + 1;
    const std::optional<int64_t> step = step_of(line);
    if (step && *step > last_step) break;
    if (step) end = position;
  }
  return end;
}

}  // namespace

std::string to_json(const StepMetrics& m) {
  nlohmann::ordered_json record = {
      {"step", m.step},
      {"tokens", m.tokens},
      {"loss", m.loss},
      {"aux_loss", m.aux_loss},
      {"z_loss", m.z_loss},
      {"grad_norm", m.grad_norm},
      {"lr", m.lr},
      {"step_ms", m.step_ms},
      {"forward_ms", m.forward_ms},
      {"backward_ms", m.backward_ms},
      {"exchange_ms", m.exchange_ms},
      {"optimizer_ms", m.optimizer_ms},
      {"data_ms", m.data_ms},
      {"tokens_per_s", m.tokens_per_s},
      {"mfu", m.mfu},
      {"exchange_bytes", m.exchange_bytes},
      {"max_load_ratio", m.max_load_ratio},
      {"dropped_tokens", m.dropped_tokens},
      {"peak_memory_bytes", m.peak_memory_bytes},
      {"skipped", m.skipped},
  };
  if (m.val_loss) record["val_loss"] = *m.val_loss;
  if (!m.expert_load.empty()) record["expert_load"] = m.expert_load;
  return record.dump();
}

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t last_step)
    : file_(path, end_of_step(path, last_step)) {}

void MetricsFile::append(const StepMetrics& metrics) { file_.append(to_json(metrics) + '\n'); }

}  // namespace switchyard
