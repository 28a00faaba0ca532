#include "trainer/files/file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"

namespace switchyard {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;

[[noreturn]] void fail_with_reason(std::string_view action, const std::filesystem::path& path,
                                   int error) {
  fail("cannot {} {}: {}", action, path.string(), std::strerror(error));
}

int open_or_throw(const std::filesystem::path& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  if (descriptor < 0) fail_with_reason("open", path, errno);
  return descriptor;
}

}  // namespace

OutputFile::OutputFile(std::filesystem::path path)
    : path_(std::move(path)), descriptor_(open_or_throw(path_, O_WRONLY | O_CREAT | O_TRUNC)) {}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void OutputFile::reserve(int64_t bytes) {
  if (::ftruncate(descriptor_, bytes) != 0) fail_with_reason("enlarge", path_, errno);
  int result = 0;
  do {
    result = ::fallocate(descriptor_, 0, 0, bytes);
  } while (result != 0 && errno == EINTR);
  // Some file systems cannot claim room in advance; there the writes find out.
  if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
    const int error = errno;
    fail("cannot reserve {} bytes for {}: {}", bytes, path_.string(), std::strerror(error));
  }
}

void OutputFile::write(std::span<const std::byte> bytes) {
  crc32c_ = switchyard::crc32c(bytes, crc32c_);
  size_ += static_cast<int64_t>(bytes.size());
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    // A file takes no byte, without saying why, only when there is no room.
    if (written <= 0) fail_with_reason("write to", path_, written < 0 ? errno : ENOSPC);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void OutputFile::finish() {
  if (::ftruncate(descriptor_, size_) != 0) fail_with_reason("cut", path_, errno);
  if (::fsync(descriptor_) != 0) fail_with_reason("flush", path_, errno);
  // Network file systems report a lost write as late as here.
  if (::close(std::exchange(descriptor_, -1)) != 0) fail_with_reason("close", path_, errno);
}

InputFile::InputFile(std::filesystem::path path)
    : path_(std::move(path)), descriptor_(open_or_throw(path_, O_RDONLY)) {}

InputFile::~InputFile() { ::close(descriptor_); }

int64_t InputFile::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) fail_with_reason("examine", path_, errno);
  return status.st_size;
}

void InputFile::read(int64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t count = ::pread(descriptor_, bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_with_reason("read", path_, errno);
    require(count > 0, "{} is truncated: {} bytes are missing at {}", path_.string(), bytes.size(),
            offset);
    bytes = bytes.subspan(static_cast<size_t>(count));
    offset += count;
  }
}

uint32_t InputFile::checksum(int64_t offset, int64_t bytes) const {
  std::vector<std::byte> buffer(std::min(kChunkBytes, static_cast<size_t>(bytes)));
  uint32_t crc = 0;
  for (int64_t done = 0; done < bytes;) {
    const auto count = std::min(buffer.size(), static_cast<size_t>(bytes - done));
    const std::span chunk(buffer.data(), count);
    read(offset + done, chunk);
    crc = switchyard::crc32c(chunk, crc);
    done += static_cast<int64_t>(count);
  }
  return crc;
}

std::string read_text(const std::filesystem::path& path) {
  const InputFile file(path);
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void write_text(const std::filesystem::path& path, std::string_view text) {
  OutputFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.finish();
}

void sync_directory(const std::filesystem::path& path) {
  const int descriptor = open_or_throw(path, O_RDONLY | O_DIRECTORY);
  const int result = ::fsync(descriptor);
  const int error = errno;
  ::close(descriptor);
  // Some network file systems do not know the request for folders.
  if (result != 0 && error != EINVAL) fail_with_reason("flush", path, error);
}

}  // namespace switchyard
