#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string_view>

#include "trainer/files/file_lock.h"

namespace switchyard {

// The file that a path means: the target of a symbolic link, and of the links that it leads to,
// which need not exist; any other path itself. Throws Error for links that lead in a circle.
std::filesystem::path target_of(std::filesystem::path path);

// A file that gets its name only when it is complete and on the disk. Until then it is named
// `path`.tmp, and an older file named `path` stays unchanged. Where `path` is a symbolic link, this
// is about its target, and the link stays. Only one process at a time can have it: `path`.tmp is
// locked (file_lock.h), if the file system has locks, and another process waits for a while, and
// then gets an error. Every failure throws Error with the path and the system's reason.
class UnfinishedFile {
 public:
  // Makes the folder of the file, and an empty file or what a killed process has left.
  explicit UnfinishedFile(std::filesystem::path path);
  // Removes the file unless it was published, or its name means another file by now.
  ~UnfinishedFile();
  UnfinishedFile(const UnfinishedFile&) = delete;
  UnfinishedFile& operator=(const UnfinishedFile&) = delete;

  // The temporary path that the caller writes to.
  const std::filesystem::path& path() const { return unfinished_; }
  // The caller has written and closed the file. On return it has its name and survives a crash.
  // Throws Error if the temporary path means another file by now, which may be anybody's.
  void publish();
  // Writes a file of these bytes, and publishes it.
  void publish(std::string_view bytes);

 private:
  std::filesystem::path path_, unfinished_;
  std::optional<LockableFile> lock_;
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
