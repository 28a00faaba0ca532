#include "trainer/files/folder_lock.h"

#include <fmt/chrono.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <span>
#include <utility>

#include "kernels/runtime/check.h"
#include "parallel/distributed_context.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/folders.h"
#include "trainer/files/transfer.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using Mode = LockableFile::Mode;
using Outcome = LockableFile::Outcome;

constexpr int64_t kOwnerByte = 0, kRanksByte = 1;

std::string describe_this_process(const std::string& what) {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  const auto now =
      std::chrono::time_point_cast<std::chrono::seconds>(std::chrono::system_clock::now());
  return fmt::format("{}, process {} on {}, since {:%Y-%m-%d %H:%M:%S} UTC\n", what, ::getpid(),
                     host.data(), now);
}

// What the owner has written about itself.
std::string describe_owner(const fs::path& file) {
  try {
    const std::string text = read_file(file);
    const std::string line = text.substr(0, text.find('\n'));
    if (!line.empty()) return line;
  } catch (const Error&) {
  }
  return "unknown";
}

}  // namespace

FolderLock::FolderLock(Communicator& world, fs::path folder, std::string what, std::string remedy)
    : world_(world),
      folder_(std::move(folder)),
      what_(std::move(what)),
      remedy_(std::move(remedy)) {
  run_collectively(world_, [&] {
    if (world_.rank() == 0) own();
  });
  join_all();
}

void FolderLock::own() {
  const auto deadline = std::chrono::steady_clock::now() + kLockPatience;
  do {
    make_folder(folder_);
    file_.emplace(folder_ / kLockName);
    const Outcome owner = file_->lock_until(kOwnerByte, deadline);
    if (owner == Outcome::unknown) return;
    require(owner == Outcome::taken, "{} is in use ({}): wait until that has ended, or {}",
            folder_.string(), describe_owner(file_->path()), remedy_);
    require(file_->lock_until(kRanksByte, deadline) == Outcome::taken,
            "{} is in use by other ranks of a run whose rank 0 has ended ({}): end these "
            "processes, which may be stopped, or {}",
            folder_.string(), describe_owner(file_->path()), remedy_);
    // Between opening and locking it, its folder may have been moved away.
  } while (!file_->is_in_place());
  file_->lock(kRanksByte, Mode::shared);
  // Without room on the disk, the text is missing and the lock is there.
  const std::string text = describe_this_process(what_);
  if (uninterrupted([&] { return ::ftruncate(file_->descriptor(), 0); }) == 0) {
    write_fully(file_->descriptor(), 0, std::as_bytes(std::span(text)));
  }
}

void FolderLock::join_all() {
  run_collectively(world_, [&] {
    if (world_.rank() == 0) return;
    make_folder(folder_);
    file_.emplace(folder_ / kLockName);
    require(file_->lock(kRanksByte, Mode::shared) != Outcome::held, "{} is in use ({})",
            folder_.string(), describe_owner(file_->path()));
  });
}

void FolderLock::move_folder(const std::function<void()>& rename) {
  run_collectively(world_, [&] {
    if (world_.rank() != 0) return;
    rename();
    if (file_->is_in_place()) return;
    // The old folder stays locked until the new one is, too.
    const std::optional<LockableFile> old = std::exchange(file_, std::nullopt);
    own();
    sync_folder(fs::absolute(folder_).parent_path());
  });
  join_all();
}

void FolderLock::require_in_place() const {
  require(file_->is_in_place(),
          "{} was moved or removed while this run had it, and what is there now may belong to "
          "another run",
          folder_.string());
}

}  // namespace switchyard
