#pragma once

#include <array>
#include <exception>
#include <vector>

#include "kernels/runtime/device.h"
#include "kernels/runtime/part.h"
#include "kernels/runtime/stopwatch.h"
#include "kernels/runtime/work_observer.h"

namespace switchyard {

// The totals of each part.
struct Profile {
  std::array<double, kNumParts> seconds{};

  double seconds_of(Part part) const { return seconds[static_cast<size_t>(part)]; }
};

// Measures the time of the parts of a stream's work; see Stream::set_profiler.
class Profiler {
 public:
  explicit Profiler(Stream& stream) : stream_(stream) {
    for (int i = 0; i < kNumParts; ++i) stopwatches_.emplace_back(stream.device());
  }

  void start(Part part) { stopwatches_[static_cast<size_t>(part)].start(stream_); }
  void stop(Part part) { stopwatches_[static_cast<size_t>(part)].stop(stream_); }

  // Returns the totals since the last call; waits for the stream.
  Profile take() {
    Profile profile;
    for (size_t i = 0; i < stopwatches_.size(); ++i) {
      profile.seconds[i] = stopwatches_[i].take_seconds();
    }
    return profile;
  }

 private:
  Stream& stream_;
  std::vector<Stopwatch> stopwatches_;
};

// Says that the stream's work in the scope belongs to a part, whose time the stream's profiler
// measures; without a profiler and an observer it costs nothing. Scopes must not be nested. An
// exception leaves the part's interval open, as in ScopedTimer.
class ScopedPart {
 public:
  ScopedPart(Stream& stream, Part part)
      : profiler_(stream.profiler()), observer_(stream.observer()), part_(part) {
    if (profiler_) profiler_->start(part_);
    if (observer_) observer_->set_part(part_);
  }
  ~ScopedPart() noexcept(false) {
    if (observer_) observer_->set_part({});
    if (profiler_ && std::uncaught_exceptions() == exceptions_) profiler_->stop(part_);
  }
  ScopedPart(const ScopedPart&) = delete;
  ScopedPart& operator=(const ScopedPart&) = delete;

 private:
  Profiler* profiler_;
  WorkObserver* observer_;
  Part part_;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace switchyard
