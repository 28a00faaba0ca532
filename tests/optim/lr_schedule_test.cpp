#include "optim/lr_schedule.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

OptimizerConfig config_of(ScheduleConfig schedule) {
  OptimizerConfig config;
  config.lr = 1.0;
  config.schedule = schedule;
  return config;
}

TEST(LrScheduleTest, WarmsUpInAStraightLineAndNeverStartsAtZero) {
  const OptimizerConfig config = config_of({.type = ScheduleType::constant, .warmup_steps = 3});

  EXPECT_DOUBLE_EQ(learning_rate(config, 0, 10), 0.25);
  EXPECT_DOUBLE_EQ(learning_rate(config, 2, 10), 0.75);
  EXPECT_DOUBLE_EQ(learning_rate(config, 3, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 9, 10), 1.0);
}

TEST(LrScheduleTest, CosineFallsOnHalfAWaveToItsMinimum) {
  const OptimizerConfig config =
      config_of({.type = ScheduleType::cosine, .warmup_steps = 2, .min_lr = 0.2});

  EXPECT_DOUBLE_EQ(learning_rate(config, 2, 12), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 7, 12), 0.6);
  EXPECT_DOUBLE_EQ(learning_rate(config, 12, 12), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate(config, 50, 12), 0.2);
}

TEST(LrScheduleTest, CosineHasALengthOfItsOwnWhereOneIsGiven) {
  const OptimizerConfig config = config_of({.type = ScheduleType::cosine, .decay_steps = 4});

  EXPECT_DOUBLE_EQ(learning_rate(config, 2, 100), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(config, 4, 100), 0.0);
}

TEST(LrScheduleTest, WarmupStableDecayFallsAtTheEnd) {
  const OptimizerConfig config =
      config_of({.type = ScheduleType::wsd, .warmup_steps = 1, .decay_steps = 4, .min_lr = 0.2});

  EXPECT_DOUBLE_EQ(learning_rate(config, 6, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 8, 10), 0.6);
  EXPECT_DOUBLE_EQ(learning_rate(config, 10, 10), 0.2);
}

}  // namespace
}  // namespace switchyard
