#include "trainer/files/file_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "parallel/distributed_context.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/folder_lock.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using Mode = LockableFile::Mode;
using Outcome = LockableFile::Outcome;

TEST(FileLockTest, AnExclusiveLockKeepsOthersOutUntilItsFileIsClosed) {
  const test::TemporaryFolder folder;
  LockableFile second(folder.path() / "file");

  {
    LockableFile first(folder.path() / "file");
    EXPECT_EQ(first.lock(0, Mode::exclusive), Outcome::taken);
    EXPECT_EQ(second.lock(0, Mode::exclusive), Outcome::held);
    EXPECT_EQ(second.lock(0, Mode::shared), Outcome::held);
    EXPECT_EQ(second.lock(1, Mode::exclusive), Outcome::taken);
    test::read_file(folder.path() / "file");  // opens and closes it once more
    EXPECT_EQ(second.lock(0, Mode::exclusive), Outcome::held);
  }

  EXPECT_EQ(second.lock(0, Mode::exclusive), Outcome::taken);
}

TEST(FileLockTest, SharedLocksGoTogether) {
  const test::TemporaryFolder folder;
  LockableFile first(folder.path() / "file"), second(folder.path() / "file");

  EXPECT_EQ(first.lock(0, Mode::exclusive), Outcome::taken);
  EXPECT_EQ(first.lock(0, Mode::shared), Outcome::taken);

  EXPECT_EQ(second.lock(0, Mode::shared), Outcome::taken);
  EXPECT_EQ(second.lock(0, Mode::exclusive), Outcome::held);
}

TEST(FileLockTest, AFileIsInPlaceUntilItsNameMeansAnother) {
  const test::TemporaryFolder folder;
  const fs::path path = folder.path() / "file";
  const LockableFile file(path);

  EXPECT_TRUE(file.is_in_place());
  fs::rename(path, folder.path() / "moved");
  EXPECT_FALSE(file.is_in_place());
  test::write_file(path, "");
  EXPECT_FALSE(file.is_in_place());
}

TEST(FileLockTest, ALockIsWaitedForUntilTheDeadline) {
  const test::TemporaryFolder folder;
  const auto soon = [](int64_t ms) {
    return std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
  };
  LockableFile second(folder.path() / "file");
  auto first = std::make_unique<LockableFile>(folder.path() / "file");
  first->lock(0, Mode::exclusive);

  EXPECT_EQ(second.lock_until(0, soon(100)), Outcome::held);
  std::jthread end([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    first.reset();
  });
  EXPECT_EQ(second.lock_until(0, soon(60'000)), Outcome::taken);
}

TEST(FileLockTest, AWriterWaitsForOneThatEnds) {
  const test::TemporaryFolder folder;
  const fs::path path = folder.path() / "file";
  auto killed = std::make_unique<UnfinishedFile>(path);
  std::jthread end([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    killed.reset();
  });

  write_durably(path, "next");

  EXPECT_EQ(test::read_file(path), "next");
}

TEST(FileLockTest, AWriterWhoseFileWasReplacedPublishesAndRemovesNothing) {
  const test::TemporaryFolder folder;
  const fs::path path = folder.path() / "file", unfinished = path.string() + ".tmp";
  test::write_file(path, "old");
  {
    UnfinishedFile first(path);
    fs::remove(unfinished);
    test::write_file(unfinished, "half of another");

    const std::string error = test::error_of([&] { first.publish(); });
    EXPECT_TRUE(error.starts_with(unfinished.string() +
                                  " was removed or replaced while it was "
                                  "written, so " +
                                  path.string() + " stays as it was"))
        << error;
  }

  EXPECT_EQ(test::read_file(path), "old");
  EXPECT_EQ(test::read_file(unfinished), "half of another");
}

TEST(FileLockTest, AFileHasOneWriterAtATime) {
  const test::TemporaryFolder folder;
  const fs::path path = folder.path() / "file";
  test::write_file(path.string() + ".tmp", "of a killed process");

  {
    UnfinishedFile first(path);
    const std::string error = test::error_of([&] { UnfinishedFile second(path); });
    EXPECT_TRUE(error.starts_with("another process writes " + path.string() +
                                  ": wait until it has ended, or name another file"))
        << error;
    test::write_file(first.path(), "whole");
    first.publish();
    const UnfinishedFile second(path);  // The first one is done.
  }

  EXPECT_EQ(test::read_file(path), "whole");
  EXPECT_FALSE(fs::exists(path.string() + ".tmp"));
}

TEST(FolderLockTest, AFolderHasOneOwnerAndItsTextSaysWho) {
  const test::TemporaryFolder folder;
  const DistributedContext alone;
  const fs::path run = folder.path() / "runs" / "a";
  test::write_file(run / ".lock", "a copy of another folder's file\n");
  const FolderLock lock(alone.world(), run, "train");

  const std::string error =
      test::error_of([&] { const FolderLock second(alone.world(), run, "train"); });

  EXPECT_TRUE(error.starts_with(run.string() + " is in use (train, process " +
                                std::to_string(::getpid()) + " on "))
      << error;
  EXPECT_NE(error.find("UTC): wait until that has ended, or choose another run.dir"),
            std::string::npos)
      << error;
}

TEST(FolderLockTest, AFolderThatIsMovedAsideLeavesItsOwnerWithANewOne) {
  const test::TemporaryFolder folder;
  const DistributedContext alone;
  const fs::path run = folder.path() / "run", aside = folder.path() / "run.1";
  FolderLock lock(alone.world(), run, "train");
  test::write_file(run / "metrics.jsonl", "old");

  lock.move_folder([&] { fs::rename(run, aside); });

  EXPECT_EQ(test::read_file(aside / "metrics.jsonl"), "old");
  EXPECT_FALSE(fs::exists(run / "metrics.jsonl"));
  lock.require_in_place();
  const FolderLock of_the_old_one(alone.world(), aside, "train");
  LockableFile other(run / ".lock");
  EXPECT_EQ(other.lock(0, Mode::exclusive), Outcome::held);
  lock.move_folder([] {});  // nothing was moved
  lock.require_in_place();
  EXPECT_NE(test::error_of([&] { lock.move_folder([&] { fs::rename(run, aside); }); }), "");
}

TEST(FolderLockTest, AnOwnerNoticesThatItsFolderIsGone) {
  const test::TemporaryFolder folder;
  const DistributedContext alone;
  const FolderLock lock(alone.world(), folder.path() / "run", "train");

  fs::rename(folder.path() / "run", folder.path() / "moved");
  const FolderLock other(alone.world(), folder.path() / "run", "train");

  EXPECT_NE(test::error_of([&] { lock.require_in_place(); }).find("was moved or removed"),
            std::string::npos);
}

// Makes fcntl(_, F_OFD_SETLK, _) fail with ENOLCK, as on NFS without a lock daemon.
void take_locks_away() {
  std::array<sock_filter, 6> program = {
      sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 3),
      sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_OFD_SETLK, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOLCK),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog filter = {.len = program.size(), .filter = program.data()};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) std::_Exit(2);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) std::_Exit(2);
}

TEST(FolderLockDeathTest, WithoutLocksOneWarningSaysSoAndTheJobGoesOn) {
  const test::TemporaryFolder folder;

  EXPECT_EXIT(
      {
        take_locks_away();
        const DistributedContext alone;
        const FolderLock first(alone.world(), folder.path(), "train");
        const FolderLock second(alone.world(), folder.path(), "train");
        write_durably(folder.path() / "file", "text");
        std::_Exit(test::read_file(folder.path() / "file") == "text" ? 0 : 1);
      },
      testing::ExitedWithCode(0),
      "^switchyard: warning: the file system of .* has no locks \\(No locks available\\), so "
      "nothing can tell whether another run writes there\n$");
}

}  // namespace
}  // namespace switchyard
