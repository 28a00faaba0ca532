#pragma once

#include <chrono>
#include <cstddef>
#include <exception>
#include <utility>
#include <vector>

#include "kernels/runtime/device.h"

namespace switchyard {

// Adds up the times of intervals of a stream's work. On a CUDA device it records events, so that
// the host waits only in take_seconds; on the CPU, whose ops have finished when they return, it
// reads the clock.
class Stopwatch {
 public:
  explicit Stopwatch(Device device = {}) : device_(device) {}

  // Begin and end an interval; call them alternately.
  void start(Stream& stream);
  void stop(Stream& stream);

  // The sum since the last call of `take_seconds`. Waits for the end of the last interval.
  double take_seconds();

 private:
  using Clock = std::chrono::steady_clock;

  Device device_;
  double seconds_ = 0.0;  // CPU
  Clock::time_point begin_;
  std::vector<std::pair<Event, Event>> stretches_;  // CUDA; events are reused for the next sum
  size_t num_stretches_ = 0;
};

// Adds the time of the scope to a stopwatch. An exception that leaves the scope leaves the interval
// open: on a device that has failed, ending it would fail too, and hide what went wrong.
class ScopedTimer {
 public:
  ScopedTimer(Stopwatch& stopwatch, Stream& stream) : stopwatch_(stopwatch), stream_(stream) {
    stopwatch_.start(stream_);
  }
  ~ScopedTimer() noexcept(false) {
    if (std::uncaught_exceptions() == exceptions_) stopwatch_.stop(stream_);
  }
  ScopedTimer(const ScopedTimer&) = delete;
  ScopedTimer& operator=(const ScopedTimer&) = delete;

 private:
  Stopwatch& stopwatch_;
  Stream& stream_;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace switchyard
