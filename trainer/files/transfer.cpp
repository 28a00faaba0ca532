#include "trainer/files/transfer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

namespace switchyard {
namespace {

// The most that one system call writes. Linux 6.16 and newer take page cache for a larger write in
// pieces of megabytes, which was three times slower (ext4, 16 MiB at once).
constexpr size_t kMostWritten = size_t{512} << 10;

// After so many bytes the disk begins to write. The system would begin when the caller asks for it
// at the end (fsync), or when a tenth of the memory waits to be written.
constexpr int64_t kWorthStarting = int64_t{1} << 20;

}  // namespace

ReadResult read_fully(int descriptor, int64_t offset, std::span<std::byte> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = uninterrupted([&] {
      return ::pread(descriptor, bytes.data() + done, bytes.size() - done,
                     offset + static_cast<off_t>(done));
    });
    if (count < 0) return {done, errno};
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return {done, 0};
}

int write_fully(int descriptor, int64_t offset, std::span<const std::byte> bytes) {
  const int64_t begin = offset;
  while (!bytes.empty()) {
    const size_t wanted = std::min(bytes.size(), kMostWritten);
    const ssize_t count =
        uninterrupted([&] { return ::pwrite(descriptor, bytes.data(), wanted, offset); });
    // pwrite writes no byte and reports no error only if the disk is full.
    if (count <= 0) return count < 0 ? errno : ENOSPC;
    bytes = bytes.subspan(static_cast<size_t>(count));
    offset += count;
  }
  if (offset - begin >= kWorthStarting) {
    // A file system that cannot do so writes later; an error of the disk is reported by fsync.
    ::sync_file_range(descriptor, begin, offset - begin, SYNC_FILE_RANGE_WRITE);
  }
  return 0;
}

}  // namespace switchyard
