#include "trainer/files/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/runtime/check.h"

namespace switchyard {

AppendFile::AppendFile(std::filesystem::path path, int64_t size) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  require(descriptor_ >= 0, "cannot open {}: {}", path_.string(), std::strerror(errno));
  const bool is_writable = ::ftruncate(descriptor_, size) == 0 &&
                           ::write(descriptor_, "\n", 1) == 1 && ::fsync(descriptor_) == 0 &&
                           ::ftruncate(descriptor_, size) == 0;
  if (!is_writable) {
    const int error = errno;
    ::close(descriptor_);
    fail("cannot write to {}: {}", path_.string(), std::strerror(error));
  }
}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::append(std::string_view record) {
  const off_t before = ::lseek(descriptor_, 0, SEEK_END);
  const ssize_t written = ::write(descriptor_, record.data(), record.size());
  if (written == static_cast<ssize_t>(record.size())) return;
  const int error = written < 0 ? errno : ENOSPC;  // a short write means a full disk
  const bool restored = ::ftruncate(descriptor_, before) == 0;
  fail("cannot write to {}: {}{}", path_.string(), std::strerror(error),
       restored ? "" : "; its last record is incomplete");
}

}  // namespace switchyard
