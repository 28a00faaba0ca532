#include "parallel/mpi_progress.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <thread>
#include <utility>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"

namespace switchyard {
namespace {

using namespace std::chrono_literals;

// Finishes when `step` returns true.
class Operation final : public MpiOperation {
 public:
  explicit Operation(std::function<bool(bool may_wait)> step) : step_(std::move(step)) {}

 private:
  bool advance(bool may_wait) override { return step_(may_wait); }

  std::function<bool(bool)> step_;
};

void wait_until(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + 30s;
  while (!condition() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(100us);
  }
  ASSERT_TRUE(condition());
}

TEST(MpiProgressTest, InTheBackgroundAnOperationFinishesWithoutAWait) {
  MpiProgress progress(/*in_background=*/true);
  std::atomic<int> steps = 0;
  std::atomic<bool> waited = false, on_another_thread = true;
  const auto own = std::this_thread::get_id();
  Operation operation([&](bool may_wait) {
    if (may_wait) waited = true;
    if (std::this_thread::get_id() == own) on_another_thread = false;
    return ++steps == 5;
  });

  progress.start(operation);
  wait_until([&] { return steps == 5; });
  progress.wait(operation);

  EXPECT_EQ(steps, 5);
  EXPECT_TRUE(on_another_thread);
  EXPECT_FALSE(waited) << "the thread would keep MPI from the rank";
}

TEST(MpiProgressTest, WithoutABackgroundItAdvancesOnlyInTheWaitAndMayWait) {
  MpiProgress progress(/*in_background=*/false);
  int steps = 0;
  bool waited = true;
  Operation operation([&](bool may_wait) {
    waited = waited && may_wait;
    return ++steps == 5;
  });

  progress.start(operation);
  std::this_thread::sleep_for(5ms);
  EXPECT_EQ(steps, 0);
  progress.wait(operation);

  EXPECT_EQ(steps, 5);
  EXPECT_TRUE(waited);
}

TEST(MpiProgressTest, AWaitAdvancesAllOperationsAndAlsoOneThatWasNotStarted) {
  MpiProgress progress(/*in_background=*/true);
  std::atomic<bool> first_finished = false;
  Operation first([&](bool) { return first_finished = true; });
  // As a message that waits for the other side's reduction.
  Operation second([&](bool) { return first_finished.load(); });

  progress.start(first);
  progress.wait(second);

  EXPECT_TRUE(first_finished);
}

TEST(MpiProgressTest, OneThreadAtATimeAdvancesAndItNeverDoesWhileMpiIsHeld) {
  MpiProgress progress(/*in_background=*/true);
  std::atomic<int> inside = 0, steps = 0;
  std::atomic<bool> alone = true;
  Operation endless([&](bool) {
    if (++inside != 1) alone = false;
    ++steps;
    --inside;
    return false;
  });
  progress.start(endless);
  wait_until([&] { return steps > 0; });

  for (int i = 0; i < 200; ++i) {
    const auto held = progress.hold();
    const int before = steps;
    if (++inside != 1) alone = false;
    std::this_thread::sleep_for(100us);
    --inside;
    EXPECT_EQ(steps, before);
  }

  progress.forget(endless);
  EXPECT_TRUE(alone);
}

TEST(MpiProgressTest, WaitThrowsWhatTheOperationThrewOnTheThread) {
  MpiProgress progress(/*in_background=*/true);
  std::atomic<bool> thrown = false;
  Operation operation([&](bool) -> bool {
    thrown = true;
    fail("the network is down");
  });

  progress.start(operation);
  wait_until([&] { return thrown.load(); });

  EXPECT_NE(test::error_of([&] { progress.wait(operation); }).find("the network is down"),
            std::string::npos);
}

TEST(MpiProgressTest, AForgottenOperationAdvancesNoMore) {
  MpiProgress progress(/*in_background=*/true);
  std::atomic<int> steps = 0;
  Operation operation([&](bool) {
    ++steps;
    return false;
  });
  progress.start(operation);
  wait_until([&] { return steps > 0; });

  progress.forget(operation);
  const int before = steps;
  std::this_thread::sleep_for(5ms);

  EXPECT_EQ(steps, before);
}

TEST(MpiProgressTest, TheThreadGetsNoSignalsAndSumsAlone) {
  MpiProgress progress(/*in_background=*/true);
  std::atomic<bool> checked = false, blocks = false;
  std::atomic<int> threads = 0;
  Operation operation([&](bool) {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    blocks = sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGUSR1) == 1;
    threads = omp_get_max_threads();
    checked = true;
    return true;
  });

  progress.start(operation);
  wait_until([&] { return checked.load(); });
  progress.wait(operation);

  EXPECT_TRUE(blocks);
  EXPECT_EQ(threads, 1);
}

}  // namespace
}  // namespace switchyard
