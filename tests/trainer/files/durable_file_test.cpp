#include "trainer/files/durable_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <iterator>
#include <stdexcept>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/files/file_io.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

class DurableFileTest : public ::testing::Test {
 protected:
  int64_t num_files() const {
    return std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator());
  }

  test::TemporaryFolder folder_;
  fs::path path_ = folder_.path() / "file.json";
};

TEST_F(DurableFileTest, TheFileHasItsBytesAndNothingElseStays) {
  write_durably(path_, "old and longer");
  write_durably(path_, "new");

  EXPECT_EQ(read_file(path_), "new");
  EXPECT_EQ(num_files(), 1);
}

TEST_F(DurableFileTest, TheNameComesAfterTheContents) {
  write_durably(path_, "old");

  write_durably(path_, [&](const fs::path& unfinished) {
    test::write_file(unfinished, "new");
    EXPECT_EQ(read_file(path_), "old");
  });

  EXPECT_EQ(read_file(path_), "new");
}

TEST_F(DurableFileTest, AFailureLeavesWhatWasThere) {
  write_durably(path_, "old");

  EXPECT_THROW(write_durably(path_,
                             [&](const fs::path& unfinished) {
                               test::write_file(unfinished, "half");
                               throw std::runtime_error("no");
                             }),
               std::runtime_error);

  EXPECT_EQ(read_file(path_), "old");
  EXPECT_EQ(num_files(), 1);
}

TEST_F(DurableFileTest, FoldersAreMade) {
  write_durably(folder_.path() / "a" / "b" / "c.txt", "x");

  EXPECT_EQ(read_file(folder_.path() / "a" / "b" / "c.txt"), "x");
}

// A limit on the size of files stands in for a full disk.
// A pipe stands for devices, which root could replace.
TEST_F(DurableFileTest, FoldersPipesAndDevicesAreNotReplaced) {
  const fs::path pipe = folder_.path() / "pipe", inner = folder_.path() / "folder";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  fs::create_directory(inner);

  for (const fs::path& path : {pipe, inner}) {
    EXPECT_THAT(error_of([&] { write_durably(path, "text"); }),
                HasSubstr(path.string() + " is no regular file, so it is not replaced"));
    EXPECT_FALSE(fs::exists(path.string() + ".tmp"));
  }

  EXPECT_TRUE(fs::is_fifo(pipe));
}

TEST_F(DurableFileTest, AFullDiskIsAnErrorWithTheReasonAndLeavesWhatWasThere) {
  write_durably(path_, "old");
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit kept = limit;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  limit.rlim_cur = 1000;
  setrlimit(RLIMIT_FSIZE, &limit);

  const std::string error = error_of([&] { write_durably(path_, std::string(5000, 'x')); });
  setrlimit(RLIMIT_FSIZE, &kept);
  std::signal(SIGXFSZ, handler);

  EXPECT_THAT(error, AllOf(HasSubstr("file.json.tmp"), HasSubstr("File too large")));
  EXPECT_EQ(read_file(path_), "old");
  EXPECT_EQ(num_files(), 1);
}

TEST_F(DurableFileTest, AReadPastTheEndSaysWhereTheFileIsCutOff) {
  test::write_file(path_, "12345");
  const InputFile file(path_);
  std::vector<std::byte> bytes(4);

  EXPECT_THAT(error_of([&] { file.read(3, bytes); }),
              AllOf(HasSubstr("file.json is cut off at byte 5"), HasSubstr("2 bytes")));
}

}  // namespace
}  // namespace switchyard
