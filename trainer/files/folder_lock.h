#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "parallel/communicator.h"
#include "trainer/files/file_lock.h"

namespace switchyard {

inline constexpr char kLockName[] = ".lock";

// Makes a job the owner of a folder that it writes to, for the lifetime of the object. A second job
// gets an error that names the folder and the first one. Readers need no lock.
//
// The folder's file `.lock` is locked: byte 0 by rank 0 alone, byte 1 by every rank together. So a
// new job also notices ranks that outlive the rank 0 of their own job and may still write. Only the
// kernel's locks count (file_lock.h); the file's text tells people who has the folder.
class FolderLock {
 public:
  // Makes the folder if it is missing. A job that was just killed may need seconds to end, so a
  // lock is waited for that long. Collective over `world`; throws CollectiveError.
  //   what    the kind of job, for messages: "training"
  //   remedy  of a folder that is in use, beside waiting
  FolderLock(Communicator& world, std::filesystem::path folder, std::string what,
             std::string remedy = "choose another run.dir");

  // Calls `rename` on rank 0, which may rename the folder; then makes it anew, and owns the new
  // one. Collective; throws CollectiveError. Must be called before files in the folder are opened.
  void move_folder(const std::function<void()>& rename);

  // Throws Error if the folder's path no longer leads to the locked folder: it was moved or
  // removed, and another job may own what is there now. Not collective.
  void require_in_place() const;

 private:
  void own();
  void join_all();

  Communicator& world_;
  std::filesystem::path folder_;
  std::string what_, remedy_;
  std::optional<LockableFile> file_;
};

}  // namespace switchyard
