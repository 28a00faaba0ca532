#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "kernels/runtime/check.h"

namespace switchyard {

// The system refuses to open or to read a file. Its contents may be right, so messages must not ask
// to make it again.
class CannotReadError : public Error {
 public:
  using Error::Error;
};

// A file that is written from its start to its end, or at given offsets. Every failure throws Error
// with the path and the system's reason.
class OutputFile {
 public:
  // Makes the file, or truncates an existing one.
  explicit OutputFile(std::filesystem::path path);
  // Closes the file and ignores errors; `close` reports them.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // Behind what `write` has written so far.
  void write(std::span<const std::byte> bytes);
  // From `offset` on. Several threads may write to different places.
  void write_at(int64_t offset, std::span<const std::byte> bytes);
  // On return the operating system has the whole file; write_durably flushes it to the disk.
  void close();

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

// A file that is read at given offsets. Every failure throws Error with the path.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  int64_t size() const;
  // Fills `bytes` from `offset` on; throws if the file is too short.
  void read(int64_t offset, std::span<std::byte> bytes) const;
  // CRC-32C of `bytes` bytes from `offset`.
  uint32_t checksum(int64_t offset, int64_t bytes) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

// All bytes of a file.
std::string read_file(const std::filesystem::path& path);

}  // namespace switchyard
