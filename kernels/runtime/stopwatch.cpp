#include "kernels/runtime/stopwatch.h"

namespace switchyard {

void Stopwatch::start(Stream& stream) {
  if (device_.counts_only) return;
  if (device_.is_host()) {
    begin_ = Clock::now();
    return;
  }
  if (num_stretches_ == stretches_.size()) {
    stretches_.emplace_back(Event(device_, Event::Timing::on), Event(device_, Event::Timing::on));
  }
  stretches_[num_stretches_].first.record(stream);
}

void Stopwatch::stop(Stream& stream) {
  if (device_.counts_only) return;
  if (device_.is_host()) {
    seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count();
    return;
  }
  stretches_[num_stretches_++].second.record(stream);
}

double Stopwatch::take_seconds() {
  double total = std::exchange(seconds_, 0.0);
  for (size_t i = 0; i < num_stretches_; ++i) {
    total += stretches_[i].second.seconds_since(stretches_[i].first);
  }
  num_stretches_ = 0;
  return total;
}

}  // namespace switchyard
