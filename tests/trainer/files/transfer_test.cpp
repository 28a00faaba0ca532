#include "trainer/files/transfer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <span>
#include <string>
#include <thread>
#include <vector>

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

TEST(TransferTest, EveryByteArrivesWhateverNumberOfCallsThatTakes) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "file";
  for (const size_t size : {size_t{0}, size_t{1}, size_t{512} << 10, (size_t{3} << 20) + 5}) {
    std::vector<std::byte> bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 2654435761u >> 13);

    OutputFile file(path);
    file.write(bytes);
    file.write(bytes);
    file.close();

    std::vector<std::byte> twice = bytes;
    twice.insert(twice.end(), bytes.begin(), bytes.end());
    const std::string read = read_file(path);
    ASSERT_EQ(read.size(), twice.size());
    EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(read)), twice)) << size;
  }
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
