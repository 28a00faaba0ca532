#pragma once

#include <functional>

#include "kernels/runtime/device.h"

namespace switchyard {

// The time that a stream's work takes. On a CPU where each rank has one thread it is the time that
// the thread ran, so that ranks which share a core do not measure one another; else it is the time
// by the clock, with the device's work done.
class WorkClock {
 public:
  WorkClock(Stream& stream, int threads)
      : stream_(stream), counts_thread_(threads == 1 && stream.device().is_host()) {}

  double now();
  // The mean of as many runs as take some milliseconds, after one that is not timed.
  double seconds_of(const std::function<void()>& work);

 private:
  Stream& stream_;
  bool counts_thread_;
};

}  // namespace switchyard
