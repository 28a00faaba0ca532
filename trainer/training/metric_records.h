#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace switchyard {

// A whole line of a metrics.jsonl.
struct MetricRecord {
  int64_t step = 0;
  int64_t end = 0;  // in the file; 0 if there is no such line
};

// The last record of a step up to `last_step`; steps ascend within the file. A missing file has
// none.
MetricRecord last_metric_record(const std::filesystem::path& path, int64_t last_step);

// The held-out loss that a record of this step holds.
std::optional<double> held_out_loss_of(const std::filesystem::path& path, int64_t step);

}  // namespace switchyard
