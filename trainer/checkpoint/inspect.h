#pragma once

#include <filesystem>
#include <string>

namespace switchyard {

// Describes a checkpoint for people: its step, counters, layout, tensors and configuration; for a
// run or a folder of checkpoints, one line for each, and with `verify` the newest in full. `verify`
// reads everything and adds the statistics of each tensor; throws Error that names every damaged
// file and tensor. Not collective.
std::string inspect_checkpoint(const std::filesystem::path& folder, bool verify);

}  // namespace switchyard
