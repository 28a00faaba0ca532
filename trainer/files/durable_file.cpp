#include "trainer/files/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <span>
#include <system_error>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/files/file_io.h"
#include "trainer/files/folders.h"
#include "trainer/files/transfer.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// Returns errno, or 0.
int open_and_sync(const fs::path& path, int flags) {
  const int descriptor =
      uninterrupted([&] { return ::open(path.c_str(), flags | O_RDONLY | O_CLOEXEC); });
  if (descriptor < 0) return errno;
  const int error = uninterrupted([&] { return ::fsync(descriptor); }) == 0 ? 0 : errno;
  ::close(descriptor);
  return error;
}

// Writing into a link, or into a file that has another name, too, would change that file.
void remove_if_it_is_another_file(const fs::path& unfinished) {
  std::error_code error;
  if (fs::is_symlink(unfinished, error) ||
      (fs::exists(unfinished, error) && fs::hard_link_count(unfinished, error) > 1)) {
    fs::remove(unfinished, error);
  }
}

}  // namespace

fs::path target_of(fs::path path) {
  constexpr int kMostLinks = 40;  // as the system allows
  std::error_code error;          // of what does not exist
  for (int links = 0; fs::is_symlink(path, error); ++links) {
    require(links < kMostLinks, "{} is a symbolic link that leads in a circle", path.string());
    path = folder_of(path) / fs::read_symlink(path);
  }
  return path;
}

UnfinishedFile::UnfinishedFile(fs::path path)
    : path_(target_of(std::move(path))), unfinished_(path_.string() + ".tmp") {
  std::error_code error;
  // Renaming a file to /dev/stdout would replace the device.
  require(!fs::exists(path_, error) || fs::is_regular_file(path_, error),
          "{} is no regular file, so it is not replaced: name another one", path_.string());
  make_folder(folder_of(path_));
  const auto deadline = std::chrono::steady_clock::now() + kLockPatience;
  do {
    remove_if_it_is_another_file(unfinished_);
    lock_.emplace(unfinished_);
    require(lock_->lock_until(0, deadline) != LockableFile::Outcome::held,
            "another process writes {}: wait until it has ended, or name another file",
            path_.string());
    // Between opening and locking it, its writer may have renamed or removed it.
  } while (!lock_->is_in_place());
}

UnfinishedFile::~UnfinishedFile() {
  std::error_code ignored;
  if (!published_ && lock_->is_in_place()) fs::remove(unfinished_, ignored);
}

void UnfinishedFile::publish() {
  require(lock_->is_in_place(),
          "{} was removed or replaced while it was written, so {} stays as it was; write it again",
          unfinished_.string(), path_.string());
  sync_file(unfinished_);
  std::error_code error;
  fs::rename(unfinished_, path_, error);
  require(!error, "cannot rename {} to {}: {}", unfinished_.string(), path_.string(),
          error.message());
  published_ = true;
  sync_folder(folder_of(path_));
}

void UnfinishedFile::publish(std::string_view bytes) {
  OutputFile file(unfinished_);
  file.write(std::as_bytes(std::span(bytes)));
  file.close();
  publish();
}

void write_durably(const fs::path& path,
                   const std::function<void(const fs::path& unfinished)>& body) {
  UnfinishedFile file(path);
  body(file.path());
  file.publish();
}

void write_durably(const fs::path& path, std::string_view bytes) {
  UnfinishedFile(path).publish(bytes);
}

void sync_file(const fs::path& path) {
  const int error = open_and_sync(path, 0);
  require(error == 0, "cannot flush {} to the disk: {}", path.string(), std::strerror(error));
}

void sync_folder(const fs::path& path) {
  const int error = open_and_sync(path, O_DIRECTORY);
  // Some network file systems do not support fsync of folders.
  require(error == 0 || error == EINVAL, "cannot flush the folder {} to the disk: {}",
          path.string(), std::strerror(error));
}

}  // namespace switchyard
