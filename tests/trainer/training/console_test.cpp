#include "trainer/training/console.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

StepMetrics at_step(int64_t step, double step_ms = 100.0) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = 4.5;
  metrics.step_ms = step_ms;
  metrics.tokens_per_s = 2000.0;
  return metrics;
}

int64_t count(const std::string& text, char wanted) {
  return std::count(text.begin(), text.end(), wanted);
}

TEST(FormatDuration, UsesHoursOnlyWhenThereAreAny) {
  EXPECT_EQ(format_duration(0.0), "0:00");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(3599.0), "59:59");
  EXPECT_EQ(format_duration(3723.0), "1:02:03");
}

TEST(FormatCount, KeepsThreeOrFourDigits) {
  EXPECT_EQ(format_count(0.0), "0");
  EXPECT_EQ(format_count(999.0), "999");
  EXPECT_EQ(format_count(1000.0), "1.0k");
  EXPECT_EQ(format_count(12345.0), "12.3k");
  EXPECT_EQ(format_count(999960.0), "1.00M");
  EXPECT_EQ(format_count(4.56e9), "4.56G");
}

TEST(FormatStep, TellsOfRoutingOnlyInModelsThatRoute) {
  StepMetrics metrics = at_step(20);
  EXPECT_THAT(format_step(metrics, 1500, 2000.0), Not(HasSubstr("load")));

  metrics.max_load_ratio = 1.25;
  metrics.dropped_tokens = 3;

  EXPECT_THAT(format_step(metrics, 1500, 2000.0), StartsWith("step   20/1500  loss 4.5000"));
  EXPECT_THAT(format_step(metrics, 1500, 2000.0), HasSubstr("load 1.25  dropped 3"));
}

TEST(FormatStep, SaysWhenAStepWasSkipped) {
  StepMetrics metrics = at_step(20);
  metrics.skipped = true;

  EXPECT_THAT(format_step(metrics, 1500, 2000.0), HasSubstr("skipped"));
}

TEST(Console, PrintsOneLinePerIntervalAndForTheFirstAndLastStep) {
  std::ostringstream out;
  Console console(out, {.max_steps = 25, .interval = 10});

  for (int64_t step = 1; step <= 25; ++step) console.step(at_step(step));

  EXPECT_EQ(count(out.str(), '\n'), 4);  // 1, 10, 20, 25
  EXPECT_THAT(out.str(), HasSubstr("step 25/25"));
  EXPECT_THAT(out.str(), Not(HasSubstr("\r")));
}

TEST(Console, PrintsEvaluationsBetweenIntervals) {
  std::ostringstream out;
  Console console(out, {.first_step = 101, .max_steps = 1000, .interval = 100});
  StepMetrics metrics = at_step(150);
  metrics.val_loss = 4.75;

  console.step(metrics);

  EXPECT_THAT(out.str(), HasSubstr("val 4.7500"));
}

TEST(Console, ThroughputIsTheMeanSinceTheLastLine) {
  std::ostringstream out;
  Console console(out, {.max_steps = 100, .interval = 2});
  console.step(at_step(2));
  StepMetrics slow = at_step(3, 300.0), fast = at_step(4, 100.0);
  slow.tokens_per_s = 1000.0;  // 300 tokens in 0.3 s and
  fast.tokens_per_s = 3000.0;  // 300 tokens in 0.1 s

  console.step(slow);
  console.step(fast);

  EXPECT_THAT(out.str(), HasSubstr("1.5k tok/s"));
}

TEST(Console, ProgressBarShowsShareAndTimeLeft) {
  std::ostringstream out;
  Console console(out, {.max_steps = 100, .interval = 1000, .is_terminal = true, .columns = 40});

  for (int64_t step = 1; step <= 25; ++step) console.step(at_step(step, 2000.0));

  const std::string bar = out.str().substr(out.str().rfind('\r') + 4);
  EXPECT_THAT(bar, StartsWith("[==="));
  EXPECT_THAT(bar, HasSubstr(" 25 %  2:30 left"));
  EXPECT_LT(bar.size(), 40u);
}

TEST(Console, LinesReplaceTheProgressBarAndItIsDrawnAgainBelow) {
  std::ostringstream out;
  Console console(out, {.max_steps = 100, .interval = 1000, .is_terminal = true, .columns = 40});
  console.step(at_step(1));

  console.message("saved step 1");

  EXPECT_THAT(out.str(), HasSubstr("\r\033[Ksaved step 1\n["));
}

TEST(Console, LeavesTheCursorOnAFreshLine) {
  std::ostringstream out;

  { Console(out, {.max_steps = 3, .is_terminal = true}).step(at_step(2)); }

  EXPECT_EQ(out.str().back(), '\n');
}

TEST(Console, SurvivesATerminalThatIsTooNarrowForTheBar) {
  std::ostringstream out;
  Console console(out, {.max_steps = 3, .is_terminal = true, .columns = 5});

  console.step(at_step(1));

  EXPECT_THAT(out.str(), HasSubstr("[]"));
}

}  // namespace
}  // namespace switchyard
