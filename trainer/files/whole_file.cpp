#include "trainer/files/whole_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <system_error>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// Closes a file descriptor at the end of its life.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags)
      : value_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    require(value_ >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
  }
  ~Descriptor() { ::close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return value_; }

 private:
  int value_;
};

void write_and_sync(const std::filesystem::path& path, std::string_view bytes) {
  const Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC);
  while (!bytes.empty()) {
    const ssize_t written = ::write(file.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    require(written > 0, "cannot write {}: {}", path.string(), std::strerror(errno));
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  require(::fsync(file.get()) == 0, "cannot flush {} to disk: {}", path.string(),
          std::strerror(errno));
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  const auto folder = path.parent_path();
  return folder.empty() ? "." : folder;
}

}  // namespace

std::string read_whole_file(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY);
  std::string bytes;
  char block[1 << 16];
  for (;;) {
    const ssize_t count = ::read(file.get(), block, sizeof(block));
    if (count < 0 && errno == EINTR) continue;
    require(count >= 0, "cannot read {}: {}", path.string(), std::strerror(errno));
    if (count == 0) return bytes;
    bytes.append(block, static_cast<size_t>(count));
  }
}

void write_whole_file(const std::filesystem::path& path, std::string_view bytes) {
  make_parent_folder(path);
  const std::filesystem::path unfinished = path.string() + ".tmp";
  try {
    write_and_sync(unfinished, bytes);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(unfinished, ignored);
    throw;
  }
  rename_durably(unfinished, path);
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code error;
  std::filesystem::rename(from, to, error);
  require(!error, "cannot rename {} to {}: {}", from.string(), to.string(), error.message());
  // Some file systems cannot flush folders; the name is right all the same unless power fails.
  const Descriptor folder(folder_of(to), O_RDONLY | O_DIRECTORY);
  ::fsync(folder.get());
}

void make_parent_folder(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(folder_of(path), error);
  require(!error, "cannot make the folder {}: {}", folder_of(path).string(), error.message());
}

}  // namespace switchyard
