#include "trainer/files/file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/transfer.h"

namespace switchyard {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;

int open_or_throw(const std::filesystem::path& path, int flags) {
  const int descriptor =
      uninterrupted([&] { return ::open(path.c_str(), flags | O_CLOEXEC, 0644); });
  require(descriptor >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
  return descriptor;
}

int open_to_read(const std::filesystem::path& path) {
  const int descriptor = uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); });
  if (descriptor < 0) {
    throw CannotReadError(fmt::format("cannot open {}: {}", path.string(), std::strerror(errno)));
  }
  return descriptor;
}

}  // namespace

OutputFile::OutputFile(std::filesystem::path path)
    : path_(std::move(path)), descriptor_(open_or_throw(path_, O_WRONLY | O_CREAT | O_TRUNC)) {}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void OutputFile::write(std::span<const std::byte> bytes) {
  write_at(size_, bytes);
  size_ += static_cast<int64_t>(bytes.size());
}

void OutputFile::write_at(int64_t offset, std::span<const std::byte> bytes) {
  const int error = write_fully(descriptor_, offset, bytes);
  require(error == 0, "cannot write {}: {}", path_.string(), std::strerror(error));
}

void OutputFile::close() {
  // Network file systems may report a lost write only at close.
  const int status = ::close(std::exchange(descriptor_, -1));
  // After an interruption the writes go on, and fsync reports their errors.
  require(status == 0 || errno == EINTR, "cannot write {}: {}", path_.string(),
          std::strerror(errno));
}

InputFile::InputFile(std::filesystem::path path)
    : path_(std::move(path)), descriptor_(open_to_read(path_)) {}

InputFile::~InputFile() { ::close(descriptor_); }

int64_t InputFile::size() const {
  struct stat status {};
  require(::fstat(descriptor_, &status) == 0, "cannot examine {}: {}", path_.string(),
          std::strerror(errno));
  return status.st_size;
}

void InputFile::read(int64_t offset, std::span<std::byte> bytes) const {
  const ReadResult result = read_fully(descriptor_, offset, bytes);
  if (result.error != 0) {
    throw CannotReadError(
        fmt::format("cannot read {}: {}", path_.string(), std::strerror(result.error)));
  }
  require(result.bytes == bytes.size(), "{} is cut off at byte {}: {} bytes are missing",
          path_.string(), offset + static_cast<int64_t>(result.bytes), bytes.size() - result.bytes);
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

std::string read_file(const std::filesystem::path& path) {
  const InputFile file(path);
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace switchyard
