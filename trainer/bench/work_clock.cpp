#include "trainer/bench/work_clock.h"

#include <ctime>

namespace switchyard {
namespace {

constexpr double kLongEnough = 4e-3;
constexpr int kMostRuns = 200;

}  // namespace

double WorkClock::now() {
  if (!counts_thread_) stream_.synchronize();
  timespec time{};
  clock_gettime(counts_thread_ ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double WorkClock::seconds_of(const std::function<void()>& work) {
  work();
  const double begin = now();
  double elapsed = 0.0;
  int runs = 0;
  while (elapsed < kLongEnough && runs < kMostRuns) {
    work();
    ++runs;
    elapsed = now() - begin;
  }
  return elapsed / runs;
}

}  // namespace switchyard
