#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace switchyard {

// A file that grows by whole records, whatever happens.
class AppendFile {
 public:
  // Opens for appending, made if need be, and cuts it to `size` bytes. Throws Error.
  AppendFile(std::filesystem::path path, int64_t size);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // The record is in the hands of the operating system on return. Throws Error if it could not be
  // written whole (disk full); the file then ends as it did before.
  void append(std::string_view record);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace switchyard
