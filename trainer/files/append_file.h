#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace switchyard {

// A file to which whole records are appended; a record that cannot be written whole is removed.
class AppendFile {
 public:
  // Opens or makes the file for appending, and truncates it to `size` bytes. Throws Error, also if
  // it cannot be written, or if the disk has no room for some records.
  AppendFile(std::filesystem::path path, int64_t size);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // On return the operating system has the record. Throws Error if the record could not be written
  // whole (disk full); the file then ends as it did before.
  void append(std::string_view record);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace switchyard
