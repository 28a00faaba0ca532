#pragma once

#include <filesystem>
#include <string>

#include "trainer/files/not_finite.h"

namespace switchyard {

struct Inspection {
  std::string text;      // a description for people
  NotFinite not_finite;  // of all values, where they were read
};

// Describes a checkpoint for people: its step, counters, layout, tensors and configuration; for a
// run or a folder of checkpoints, one line for each, and with `verify` the newest in full. `verify`
// reads everything and adds the statistics of each tensor, NaN and infinities counted; throws Error
// that names every damaged file and tensor. Not collective.
Inspection inspect_checkpoint(const std::filesystem::path& folder, bool verify);

// The last line about a file whose checksums match.
std::string describe_verified(const NotFinite& not_finite);

}  // namespace switchyard
