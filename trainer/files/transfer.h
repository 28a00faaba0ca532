#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>

namespace switchyard {

// Repeats a system call as long as a signal interrupts it. Handlers ask for that (SA_RESTART), but
// network file systems and FUSE do not always obey.
template <class Call>
auto uninterrupted(const Call& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

// These functions transfer all bytes at an offset of an open file; one system call may transfer
// fewer, or be interrupted. Errors are returned, not thrown: HDF5 calls these functions through C.

struct ReadResult {
  size_t bytes = 0;  // fewer than requested, without an error, if the file ends there
  int error = 0;     // errno, or 0
};
ReadResult read_fully(int descriptor, int64_t offset, std::span<std::byte> bytes);

// Returns errno, or 0.
int write_fully(int descriptor, int64_t offset, std::span<const std::byte> bytes);

}  // namespace switchyard
