#include "trainer/files/transfer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>

#include "tests/support/temporary_folder.h"
#include "trainer/files/file_io.h"

namespace switchyard {
namespace {

TEST(TransferTest, AnInterruptedCallIsRepeatedAndAnyOtherErrorIsNot) {
  int calls = 0;
  const auto interrupted_twice = [&] {
    errno = EINTR;
    return ++calls < 3 ? -1 : 7;
  };
  const auto full = [&] {
    errno = ENOSPC;
    ++calls;
    return -1;
  };

  EXPECT_EQ(uninterrupted(interrupted_twice), 7);
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(uninterrupted(full), -1);
  EXPECT_EQ(calls, 4);
}

// Opening a pipe waits for its other end. This handler interrupts the wait, as FUSE and network
// file systems may do in spite of SA_RESTART.
TEST(TransferTest, SignalsDoNotMakeOpeningAFileFail) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  struct sigaction interrupting {};
  struct sigaction before {};
  interrupting.sa_handler = [](int) {};
  sigaction(SIGUSR1, &interrupting, &before);
  const pthread_t opens = pthread_self();
  std::thread signals([&] {
    for (int i = 0; i < 5; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      pthread_kill(opens, SIGUSR1);
    }
    ::close(::open(path.c_str(), O_WRONLY));
  });

  EXPECT_NO_THROW(InputFile{path});

  signals.join();
  sigaction(SIGUSR1, &before, nullptr);
}

}  // namespace
}  // namespace switchyard
