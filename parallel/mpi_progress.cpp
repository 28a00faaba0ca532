#include "parallel/mpi_progress.h"

#include <omp.h>
#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>

#include "kernels/runtime/signals_blocked.h"

namespace switchyard {
namespace {

// The thread sleeps so many times as long as it has worked, because it shares the rank's core:
// looks that find nothing take some 10 us each. Meanwhile the network works on out of the kernel's
// buffers, which hold some MB: 500 us at 25 Gb/s are 1.5 MB.
constexpr int kSleepPerWork = 10;
constexpr std::chrono::microseconds kShortestSleep{50}, kLongestSleep{500};
// What has arrived during a period takes several calls of MPI to read.
constexpr int kLooks = 4;
// A rank that waits looks this often without a pause, about 100 us. Then it leaves the core to
// others between its looks: to ranks that still compute, where ranks share cores.
constexpr int kEagerLooks = 50;
constexpr std::chrono::microseconds kPause{20};

// Linux lets a thread sleep up to its slack longer, by default 50 us.
void sleep_exactly() { prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL); }

}  // namespace

MpiProgress::MpiProgress(bool in_background) {
  if (!in_background) return;
  sleep_exactly();
  const SignalsBlocked in_the_thread;
  thread_ = std::thread([this] { run(); });
}

MpiProgress::~MpiProgress() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  started_.notify_one();
  thread_.join();
}

void MpiProgress::start(MpiOperation& operation) {
  if (!in_background()) return;
  {
    const std::lock_guard lock(mutex_);
    operations_.push_back(&operation);
    if (operations_.size() > 1) return;  // the thread is at work already
  }
  started_.notify_one();
}

void MpiProgress::forget(MpiOperation& operation) {
  const std::lock_guard lock(mutex_);
  operations_.remove(&operation);
}

void MpiProgress::wait(MpiOperation& operation) {
  if (!in_background()) {
    while (!operation.advance(/*may_wait=*/true)) {
    }
    return;
  }
  rank_waits_ = true;
  for (int looks = 0;; ++looks) {
    {
      const std::lock_guard lock(mutex_);
      if (looks == 0 && !operation.finished_ && std::ranges::count(operations_, &operation) == 0) {
        operations_.push_back(&operation);
      }
      advance_all();
      if (operation.finished_) break;
    }
    if (looks < kEagerLooks) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(kPause);
    }
  }
  rank_waits_ = false;
  if (operation.error_) std::rethrow_exception(operation.error_);
}

void MpiProgress::advance_all() {
  operations_.remove_if([](MpiOperation* operation) {
    try {
      operation->finished_ = operation->advance(/*may_wait=*/false);
    } catch (...) {
      operation->error_ = std::current_exception();
      operation->finished_ = true;
    }
    return operation->finished_;
  });
}

void MpiProgress::run() {
  sleep_exactly();
  omp_set_num_threads(1);  // of this thread's sums; the rank's own threads keep their cores
  std::unique_lock lock(mutex_);
  while (!ends_) {
    if (operations_.empty()) {
      started_.wait(lock);
      continue;
    }
    const auto begin = std::chrono::steady_clock::now();
    for (int looks = 0; looks < kLooks && !rank_waits_ && !operations_.empty(); ++looks) {
      advance_all();
    }
    const std::chrono::nanoseconds work = std::chrono::steady_clock::now() - begin;
    lock.unlock();
    std::this_thread::sleep_for(
        std::clamp<std::chrono::nanoseconds>(kSleepPerWork * work, kShortestSleep, kLongestSleep));
    lock.lock();
  }
}

}  // namespace switchyard
