#include "trainer/files/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/runtime/check.h"
#include "trainer/files/transfer.h"

namespace switchyard {
namespace {

// Finds out whether the disk has room, without a byte that a reader of the file could see.
int reserve_some(int descriptor, int64_t size) {
  constexpr off_t kSomeBytes = 4096;
  if (::fallocate(descriptor, FALLOC_FL_KEEP_SIZE, size, kSomeBytes) == 0) return 0;
  return errno == EOPNOTSUPP || errno == ENOSYS ? 0 : -1;  // The file system cannot tell.
}

}  // namespace

AppendFile::AppendFile(std::filesystem::path path, int64_t size) : path_(std::move(path)) {
  descriptor_ = uninterrupted(
      [&] { return ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644); });
  require(descriptor_ >= 0, "cannot open {}: {}", path_.string(), std::strerror(errno));
  const bool is_writable = uninterrupted([&] { return ::ftruncate(descriptor_, size); }) == 0 &&
                           uninterrupted([&] { return reserve_some(descriptor_, size); }) == 0 &&
                           uninterrupted([&] { return ::fsync(descriptor_); }) == 0;
  if (!is_writable) {
    const int error = errno;
    ::close(descriptor_);
    fail("cannot write to {}: {}", path_.string(), std::strerror(error));
  }
}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::append(std::string_view record) {
  const off_t before = ::lseek(descriptor_, 0, SEEK_END);
  std::string_view rest = record;
  ssize_t written = 0;
  while (!rest.empty()) {
    written = uninterrupted([&] { return ::write(descriptor_, rest.data(), rest.size()); });
    if (written <= 0) break;
    rest.remove_prefix(static_cast<size_t>(written));
  }
  if (rest.empty()) return;
  const int error = written < 0 ? errno : ENOSPC;
  const bool restored = uninterrupted([&] { return ::ftruncate(descriptor_, before); }) == 0;
  fail("cannot write to {}: {}{}", path_.string(), std::strerror(error),
       restored ? "" : "; its last record is incomplete");
}

}  // namespace switchyard
