#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

namespace switchyard {

// A file that gets its name when it is whole and on the disk: until then, whatever happens, what
// had the name before stays as it is. Meanwhile the file is `path`.tmp. Every failure throws Error
// with the path and the system's reason.
class UnfinishedFile {
 public:
  // Makes the folder that the file will lie in, not the file.
  explicit UnfinishedFile(std::filesystem::path path);
  // Removes the file unless it was published.
  ~UnfinishedFile();
  UnfinishedFile(const UnfinishedFile&) = delete;
  UnfinishedFile& operator=(const UnfinishedFile&) = delete;

  // Where to write it.
  const std::filesystem::path& path() const { return unfinished_; }
  // The file has been written and closed; on return it has its name, and survives a crash.
  void publish();

 private:
  std::filesystem::path path_, unfinished_;
  bool published_ = false;
};

// Calls `body` with the place to write an UnfinishedFile to, and publishes it.
void write_durably(const std::filesystem::path& path,
                   const std::function<void(const std::filesystem::path& unfinished)>& body);
// A file of these bytes.
void write_durably(const std::filesystem::path& path, std::string_view bytes);

// Returns when the contents of a closed file are on the disk.
void sync_file(const std::filesystem::path& path);
// Returns when the names in the folder are on the disk.
void sync_folder(const std::filesystem::path& path);

}  // namespace switchyard
