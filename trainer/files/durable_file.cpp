#include "trainer/files/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <span>
#include <system_error>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/files/file_io.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// Returns errno, or 0.
int open_and_sync(const fs::path& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags | O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return errno;
  const int error = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  return error;
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
  fs::create_directories(folder_of(path_), error);
  require(!error, "cannot make the folder {}: {}", folder_of(path_).string(), error.message());
  // Writing into a link, or into a file that has another name, too, would change that file.
  const bool has_other_name =
      fs::is_symlink(unfinished_, error) ||
      (fs::exists(unfinished_, error) && fs::hard_link_count(unfinished_, error) > 1);
  if (has_other_name) fs::remove(unfinished_, error);
}

UnfinishedFile::~UnfinishedFile() {
  std::error_code ignored;
  if (!published_) fs::remove(unfinished_, ignored);
}

void UnfinishedFile::publish() {
  sync_file(unfinished_);
  std::error_code error;
  fs::rename(unfinished_, path_, error);
  require(!error, "cannot rename {} to {}: {}", unfinished_.string(), path_.string(),
          error.message());
  published_ = true;
  sync_folder(folder_of(path_));
}

void write_durably(const fs::path& path,
                   const std::function<void(const fs::path& unfinished)>& body) {
  UnfinishedFile file(path);
  body(file.path());
  file.publish();
}

void write_durably(const fs::path& path, std::string_view bytes) {
  write_durably(path, [&](const fs::path& unfinished) {
    OutputFile file(unfinished);
    file.write(std::as_bytes(std::span(bytes)));
    file.close();
  });
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
