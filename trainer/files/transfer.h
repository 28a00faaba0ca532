#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace switchyard {

// Whole transfers at a place of an open file: the system may move fewer bytes than it was asked
// to, or be interrupted. Errors are values here, because HDF5 calls these through C.

struct ReadResult {
  size_t bytes = 0;  // fewer than asked for, without an error: the file ends there
  int error = 0;     // errno, or 0
};
ReadResult read_fully(int descriptor, int64_t offset, std::span<std::byte> bytes);

// Returns errno, or 0.
int write_fully(int descriptor, int64_t offset, std::span<const std::byte> bytes);

}  // namespace switchyard
