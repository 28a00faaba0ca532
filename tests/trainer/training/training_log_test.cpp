#include "trainer/training/training_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <sstream>

namespace switchyard {
namespace {

using ::testing::HasSubstr;

class TrainingLogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::path(::testing::TempDir()) /
           (std::string("training_log_") +
            ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  static StepMetrics at_step(int64_t step) {
    StepMetrics metrics;
    metrics.step = step;
    return metrics;
  }

  std::filesystem::path dir_;
  std::ostringstream out_;
};

TEST_F(TrainingLogTest, WritesEverySinkOfAStep) {
  TrainingLog log(dir_, /*tensorboard=*/true, 0, out_, {.max_steps = 5});

  log.record(at_step(1));

  EXPECT_GT(std::filesystem::file_size(dir_ / "metrics.jsonl"), 0u);
  EXPECT_FALSE(std::filesystem::is_empty(dir_ / "tensorboard"));
  EXPECT_THAT(out_.str(), HasSubstr("step 1/5"));
}

TEST_F(TrainingLogTest, SaysNothingIfNoStepIsMissing) {
  TrainingLog log(dir_, /*tensorboard=*/true, 0, out_, {.max_steps = 5});
  log.record(at_step(1));
  const std::string before = out_.str();

  log.say_what_is_missing();

  EXPECT_EQ(out_.str(), before);
}

TEST_F(TrainingLogTest, LeavesTensorboardOutWhenItIsOff) {
  TrainingLog log(dir_, /*tensorboard=*/false, 0, out_, {.max_steps = 5});

  log.record(at_step(1));

  EXPECT_FALSE(std::filesystem::exists(dir_ / "tensorboard"));
}

// A limit on the size of files stands in for a full disk.
TEST_F(TrainingLogTest, AFullDiskIsReportedOnceAndDoesNotEndTheTraining) {
  TrainingLog log(dir_, /*tensorboard=*/true, 0, out_, {.max_steps = 5});
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlim_t kept = limit.rlim_cur;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  limit.rlim_cur = 10;
  setrlimit(RLIMIT_FSIZE, &limit);

  log.record(at_step(1));
  log.record(at_step(2));
  limit.rlim_cur = kept;
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  const std::string said = out_.str();
  log.record(at_step(3));

  log.say_what_is_missing();

  EXPECT_THAT(said, HasSubstr("warning: step 1 is missing from the log"));
  EXPECT_EQ(said.find("warning"), said.rfind("warning"));
  EXPECT_THAT(out_.str(), HasSubstr("warning: 2 steps from 1 to 2 are missing from the log: "));
  EXPECT_GT(std::filesystem::file_size(dir_ / "metrics.jsonl"), 0u);
}

}  // namespace
}  // namespace switchyard
