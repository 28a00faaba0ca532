#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

namespace switchyard {

// The file that a path means: the target of a symbolic link, and of the links that it leads to,
// which need not exist; any other path itself. Throws Error for links that lead in a circle.
std::filesystem::path target_of(std::filesystem::path path);

// A file that gets its name only when it is complete and on the disk. Until then it is named
// `path`.tmp, and an older file named `path` stays unchanged. Where `path` is a symbolic link, this
// is about its target, and the link stays. Every failure throws Error with the path and the
// system's reason.
class UnfinishedFile {
 public:
  // Makes the folder of the file, but not the file.
  explicit UnfinishedFile(std::filesystem::path path);
  // Removes the file unless it was published.
  ~UnfinishedFile();
  UnfinishedFile(const UnfinishedFile&) = delete;
  UnfinishedFile& operator=(const UnfinishedFile&) = delete;

  // The temporary path that the caller writes to.
  const std::filesystem::path& path() const { return unfinished_; }
  // The caller has written and closed the file. On return it has its name and survives a crash.
  void publish();

 private:
  std::filesystem::path path_, unfinished_;
  bool published_ = false;
};

// Calls `body` with the temporary path of an UnfinishedFile, and publishes the file.
void write_durably(const std::filesystem::path& path,
                   const std::function<void(const std::filesystem::path& unfinished)>& body);
// Writes a file of these bytes.
void write_durably(const std::filesystem::path& path, std::string_view bytes);

// Returns when the contents of a closed file are on the disk.
void sync_file(const std::filesystem::path& path);
// Returns when the names in the folder are on the disk.
void sync_folder(const std::filesystem::path& path);

}  // namespace switchyard
