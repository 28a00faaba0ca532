#include "trainer/files/file_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/files/transfer.h"

namespace switchyard {
namespace {

// The errors of systems and file systems without such locks: no lock daemon for NFS, Lustre mounted
// without flock, FUSE and object stores, kernels before 3.15.
bool means_no_locks(int error) {
  return error == ENOLCK || error == ENOSYS || error == EOPNOTSUPP || error == ENOTSUP ||
         error == EINVAL;
}

void warn_once(const std::filesystem::path& path, int error) {
  static bool has_warned = false;
  if (std::exchange(has_warned, true)) return;
  const std::string line = fmt::format(
      "switchyard: warning: the file system of {} has no locks ({}), so nothing can tell whether "
      "another run writes there\n",
      path.string(), std::strerror(error));
  std::fputs(line.c_str(), stderr);
}

}  // namespace

LockableFile::LockableFile(std::filesystem::path path) : path_(std::move(path)) {
  descriptor_ =
      uninterrupted([&] { return ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644); });
  require(descriptor_ >= 0, "cannot open {}: {}", path_.string(), std::strerror(errno));
}

LockableFile::~LockableFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

LockableFile::LockableFile(LockableFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

LockableFile& LockableFile::operator=(LockableFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

LockableFile::Outcome LockableFile::lock(int64_t byte, Mode mode) {
  struct flock request {};
  request.l_type = mode == Mode::shared ? F_RDLCK : F_WRLCK;
  request.l_whence = SEEK_SET;
  request.l_start = static_cast<off_t>(byte);
  request.l_len = 1;
  // Ordinary locks of POSIX would end when any file of this name is closed in this process.
  const int status = uninterrupted([&] { return ::fcntl(descriptor_, F_OFD_SETLK, &request); });
  if (status == 0) return Outcome::taken;
  if (errno == EAGAIN || errno == EACCES) return Outcome::held;
  require(means_no_locks(errno), "cannot lock {}: {}", path_.string(), std::strerror(errno));
  warn_once(path_, errno);
  return Outcome::unknown;
}

LockableFile::Outcome LockableFile::lock_until(int64_t byte,
                                               std::chrono::steady_clock::time_point deadline) {
  constexpr std::chrono::milliseconds kPause{50};
  Outcome outcome = lock(byte, Mode::exclusive);
  while (outcome == Outcome::held && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kPause);
    outcome = lock(byte, Mode::exclusive);
  }
  return outcome;
}

bool LockableFile::is_in_place() const {
  struct stat opened {};
  struct stat named {};
  return ::fstat(descriptor_, &opened) == 0 && ::stat(path_.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

}  // namespace switchyard
