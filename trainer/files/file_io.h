#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace switchyard {

// A file that is written from its start to its end and checksummed on the way. Every failure throws
// Error with the path and the system's reason; nothing is left for the destructor to find out.
class OutputFile {
 public:
  // Makes the file, or empties it.
  explicit OutputFile(std::filesystem::path path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // Claims room for `bytes` in all, so that a full disk is met before the work and not after it.
  void reserve(int64_t bytes);
  void write(std::span<const std::byte> bytes);
  // Gives unused room back, and returns when the contents are on the disk.
  void finish();

  int64_t size() const { return size_; }
  uint32_t crc32c() const { return crc32c_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
  uint32_t crc32c_ = 0;
};

// A file that is read at given places. Throws Error with the path.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  int64_t size() const;
  // Fills `bytes` from `offset`; throws if the file ends before.
  void read(int64_t offset, std::span<std::byte> bytes) const;
  // CRC32C of `bytes` bytes from `offset`.
  uint32_t checksum(int64_t offset, int64_t bytes) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

std::string read_text(const std::filesystem::path& path);
// The contents are on the disk on return.
void write_text(const std::filesystem::path& path, std::string_view text);

// Returns when the names in the folder are on the disk.
void sync_directory(const std::filesystem::path& path);

}  // namespace switchyard
