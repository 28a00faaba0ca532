#include "parallel/watchdog.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "tests/support/new_threads.h"

namespace switchyard {
namespace {

using namespace std::chrono_literals;
using testing::ExitedWithCode;

constexpr int kFailed = 1, kLivedOn = 42;

// Waits until the watchdog has checked several times.
void wait_and_live_on() {
  std::this_thread::sleep_for(2500ms);
  _exit(kLivedOn);
}

TEST(WatchdogTest, ItsThreadsGetNoSignals) {
  const test::NewThreads threads;
  Watchdog watchdog(0);
  watchdog.start(60s);

  EXPECT_EQ(threads.count(), 2);
  EXPECT_EQ(threads.count_that_get_signals(), 0);
}

// Each test runs in its own process, because threads do not survive a fork.
class WatchdogDeathTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(WatchdogDeathTest, ACollectiveThatBlocksForTooLongEndsTheProcessAndSaysWhere) {
  EXPECT_EXIT(
      {
        Watchdog watchdog(3);
        watchdog.set_step(7);
        watchdog.set_phase(Phase::backward);
        watchdog.start(1s);
        const Watchdog::Blocking blocking(watchdog, "all_reduce", "ep");
        wait_and_live_on();
      },
      ExitedWithCode(kFailed),
      "rank 3 \\(step 7, backward\\): all_reduce in group ep has not finished after 1 s");
}

TEST_F(WatchdogDeathTest, ACollectiveOfADeviceThatTakesTooLongEndsTheProcess) {
  EXPECT_EXIT(
      {
        Watchdog watchdog(0);
        watchdog.start(1s);
        watchdog.watch("all_gather", "dp", [] { return false; });
        wait_and_live_on();
      },
      ExitedWithCode(kFailed), "rank 0 \\(start\\): all_gather in group dp has not finished");
}

TEST_F(WatchdogDeathTest, CollectivesThatEndInTimeAreForgotten) {
  EXPECT_EXIT(
      {
        Watchdog watchdog(0);
        watchdog.start(1s);
        const auto begin = std::chrono::steady_clock::now();
        watchdog.watch("all_gather", "dp",
                       [begin] { return std::chrono::steady_clock::now() - begin > 400ms; });
        { const Watchdog::Blocking blocking(watchdog, "barrier", "world"); }
        wait_and_live_on();
      },
      ExitedWithCode(kLivedOn), "");
}

TEST_F(WatchdogDeathTest, AnErrorOfACommunicatorEndsTheProcessUnlessItIsForgotten) {
  EXPECT_EXIT(
      {
        Watchdog watchdog(1);
        watchdog.add_check([] { return std::string(); });
        watchdog.add_check([] { return std::string("the other side has hung up"); });
        watchdog.start(60s);
        wait_and_live_on();
      },
      ExitedWithCode(kFailed), "rank 1 \\(start\\): the other side has hung up");
  EXPECT_EXIT(
      {
        Watchdog watchdog(1);
        watchdog.forget(watchdog.add_check([] { return std::string("long ago"); }));
        watchdog.start(60s);
        wait_and_live_on();
      },
      ExitedWithCode(kLivedOn), "");
}

TEST_F(WatchdogDeathTest, AnErrorOfTheDeviceIsNamedWithRankStepAndPhase) {
  EXPECT_EXIT(
      {
        Watchdog watchdog(6);
        watchdog.set_step(9);
        watchdog.set_phase(Phase::forward);
        watchdog.start(60s);
        watchdog.watch("all_gather", "dp",
                       []() -> bool { throw std::runtime_error("an uncorrectable ECC error"); });
        wait_and_live_on();
      },
      ExitedWithCode(kFailed), "rank 6 \\(step 9, forward\\): an uncorrectable ECC error");
}

// A driver that is waiting for a collective may not answer the watchdog either.
TEST_F(WatchdogDeathTest, ADeviceThatDoesNotAnswerEndsTheProcess) {
  EXPECT_EXIT(
      {
        Watchdog watchdog(4);
        watchdog.set_step(2);
        watchdog.set_phase(Phase::optimizer);
        watchdog.start(1s);
        watchdog.watch("all_gather", "dp", [] {
          std::this_thread::sleep_for(60s);
          return true;
        });
        wait_and_live_on();
      },
      ExitedWithCode(kFailed),
      "rank 4 \\(step 2, optimizer\\): the device has not answered for 1 s .*: the watchdog asked "
      "whether all_gather in group dp has finished");
}

TEST_F(WatchdogDeathTest, SlowAnswersOfADeviceDoNotEndTheProcess) {
  EXPECT_EXIT(
      {
        Watchdog watchdog(0);
        watchdog.start(2s);
        watchdog.watch("all_gather", "dp", [] {
          std::this_thread::sleep_for(600ms);
          return true;
        });
        wait_and_live_on();
      },
      ExitedWithCode(kLivedOn), "");
}

// mpirun sends SIGKILL about a second after it has asked a process to end.
TEST_F(WatchdogDeathTest, AProcessThatIsToldToEndSaysWhatItWaitsFor) {
  EXPECT_EXIT(
      {
        Watchdog watchdog(2);
        watchdog.set_step(5);
        watchdog.set_phase(Phase::optimizer);
        watchdog.set_end_requested([] { return true; });
        watchdog.start(60s);
        const Watchdog::Blocking blocking(watchdog, "reduce_scatter", "edp");
        std::this_thread::sleep_for(900ms);
        _exit(kLivedOn);
      },
      ExitedWithCode(kLivedOn),
      "rank 2 \\(step 5, optimizer\\): told to end while it waits for other ranks: reduce_scatter "
      "in group edp");
}

}  // namespace
}  // namespace switchyard
