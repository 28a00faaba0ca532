#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>

namespace switchyard {

// How long a job waits for a lock: a killed process keeps its locks until its memory is freed, and
// mpirun ends the ranks of a job within two seconds.
inline constexpr std::chrono::seconds kLockPatience{5};

// The kernel's locks on single bytes of an open file. They belong to this opening of the file, so
// they end with it, and with the process however it ends; nothing stale can stay behind. Network
// file systems keep them at the server, which frees those of a machine that went away.
class LockableFile {
 public:
  // Opens or makes the file. Throws Error.
  explicit LockableFile(std::filesystem::path path);
  // Frees the locks.
  ~LockableFile();
  LockableFile(LockableFile&& other) noexcept;
  LockableFile& operator=(LockableFile&& other) noexcept;

  enum class Mode { shared, exclusive };
  enum class Outcome {
    taken,
    held,     // by another opening of the file
    unknown,  // the file system has no locks; a warning on stderr has said so once per process
  };
  // Locks the byte, or changes the mode of its lock, without waiting. Throws Error on any other
  // failure.
  Outcome lock(int64_t byte, Mode mode);
  // Locks the byte exclusively; waits until `deadline` while it is held.
  Outcome lock_until(int64_t byte, std::chrono::steady_clock::time_point deadline);

  // Whether `path` still names the file that was opened.
  bool is_in_place() const;

  const std::filesystem::path& path() const { return path_; }
  int descriptor() const { return descriptor_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace switchyard
