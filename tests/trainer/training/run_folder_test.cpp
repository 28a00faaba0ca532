#include "trainer/training/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::read_file;
using test::write_file;
using testing::AllOf;
using testing::HasSubstr;

struct RunFolderTest : testing::Test {
  RunFolderTest() {
    config.run.dir = run.string();
    config.data.train = {{(folder.path() / "data" / "train.h5").string()}};
  }

  test::TemporaryFolder folder;
  fs::path run = folder.path() / "r";
  RunConfig config;
};

TEST_F(RunFolderTest, AnEarlierRunIsMovedWholeToANameThatNothingHas) {
  for (const char* file : {"metrics.jsonl", "checkpoints/step_00000010/manifest.json",
                           "tensorboard/events", "hash/hash_weights.h5"}) {
    for (const char* name : {"r.earlier_1", "r.earlier_2"}) {
      fs::remove_all(run);
      write_file(run / file, "old");
      write_file(run / "notes", "mine");
      config.run.dir = run.string() + "/";  // as a shell completes it

      const auto aside = move_earlier_run_aside(config);

      EXPECT_EQ(aside, folder.path() / name);
      EXPECT_FALSE(fs::exists(run));
      EXPECT_EQ(read_file(*aside / file), "old");
      EXPECT_EQ(read_file(*aside / "notes"), "mine");
    }
    for (const char* name : {"r.earlier_1", "r.earlier_2"}) fs::remove_all(folder.path() / name);
  }
}

TEST_F(RunFolderTest, AFolderWithoutARunStays) {
  EXPECT_FALSE(move_earlier_run_aside(config));
  write_file(run / "notes", "mine");
  write_file(run / "metrics.jsonl", "");
  fs::create_directories(run / "checkpoints");
  fs::create_directories(run / "tensorboard");
  write_file(run / "hash" / ".lock", "train-hash");

  EXPECT_FALSE(move_earlier_run_aside(config));
  EXPECT_EQ(read_file(run / "notes"), "mine");
}

TEST_F(RunFolderTest, WhatCannotBeMovedIsRefusedWithTheRemedy) {
  const auto refusal = [&] { return error_of([&] { move_earlier_run_aside(config); }); };
  const fs::path big = folder.path() / "big";
  write_file(big / "metrics.jsonl", "old");
  fs::create_directory_symlink(big, run);
  EXPECT_THAT(refusal(), AllOf(HasSubstr(run.string() + " is a link"),
                               HasSubstr("give run.dir a new folder")));

  fs::remove(run);
  write_file(big / "checkpoints" / "step_00000010" / "manifest.json", "old");
  fs::create_directories(run);
  fs::create_directory_symlink(big / "checkpoints", run / "checkpoints");
  EXPECT_THAT(refusal(), HasSubstr("checkpoints is a link"));

  fs::remove_all(run);
  write_file(run / "metrics.jsonl", "old");
  config.data.train = {{(run / "train.h5").string()}};
  EXPECT_THAT(refusal(), AllOf(HasSubstr("data.train = "), HasSubstr("lies in its folder")));

  config.data.train.clear();
  const fs::path before = fs::current_path();
  fs::current_path(run);
  EXPECT_THAT(refusal(), HasSubstr("was started in its folder"));
  fs::current_path(before);
  EXPECT_EQ(read_file(run / "metrics.jsonl"), "old");
}

const std::string kTenSteps = [] {
  std::string lines;
  for (int step = 1; step <= 10; ++step) lines += "{\"step\":" + std::to_string(step) + "}\n";
  return lines;
}();

struct OtherMetrics : RunFolderTest {
  OtherMetrics() { write_file(metrics, kTenSteps); }
  fs::path metrics = run / "metrics.jsonl", kept = run / "metrics.jsonl.abandoned";
};

TEST_F(OtherMetrics, OfARunWithoutCheckpointsAreRenamed) {
  EXPECT_EQ(keep_other_metrics(metrics, {}, 0), kept);
  EXPECT_FALSE(fs::exists(metrics));
  EXPECT_EQ(read_file(kept), kTenSteps);
}

TEST_F(OtherMetrics, OfCheckpointsThatAreSetAsideAreCopied) {
  EXPECT_EQ(keep_other_metrics(metrics, {4, 8}, 4), kept);
  EXPECT_EQ(read_file(metrics), kTenSteps);
  EXPECT_EQ(read_file(kept), kTenSteps);
  EXPECT_EQ(keep_other_metrics(metrics, {4, 8}, 4), fs::path(kept.string() + ".abandoned"));
}

TEST_F(OtherMetrics, OfStepsThatAreTakenAgainAreNotKept) {
  EXPECT_FALSE(keep_other_metrics(metrics, {4, 8}, 8));
  EXPECT_FALSE(keep_other_metrics(metrics, {4, 12}, 4));  // cut back by an earlier start
  EXPECT_FALSE(keep_other_metrics(run / "nothing", {}, 0));
  EXPECT_FALSE(fs::exists(kept));
}

struct Room : RunFolderTest {
  std::string check(int64_t free_mib, int64_t there, int keep, int64_t saves) {
    config.checkpoint.keep = keep;
    return check_room(
        {.checkpoint_bytes = 10 << 20, .free_bytes = free_mib << 20, .checkpoints = there}, config,
        saves);
  }
};

TEST_F(Room, OfNotEvenOneIsAnError) {
  EXPECT_THAT(error_of([&] { check(9, 3, 1, 5); }),
              AllOf(HasSubstr((run / "checkpoints").string()), HasSubstr("has 9.00 MiB free"),
                    HasSubstr("a checkpoint needs 10.0")));
}

TEST_F(Room, ForWhatIsThereAtOnceIsEnough) {
  EXPECT_EQ(check(10, 2, 2, 50), "");  // each new one replaces one
  EXPECT_EQ(check(30, 0, 2, 50), "");
  EXPECT_THAT(check(29, 0, 2, 50), HasSubstr("for 3 more checkpoints of 10.0"));
  EXPECT_EQ(check(10, 0, 2, 1), "");  // only the last step is saved
  EXPECT_THAT(check(40, 3, 0, 5), HasSubstr("for 5 more checkpoints"));
  EXPECT_EQ(check(50, 3, 0, 5), "");
}

}  // namespace
}  // namespace switchyard
