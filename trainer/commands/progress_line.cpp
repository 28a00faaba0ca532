#include "trainer/commands/progress_line.h"

#include <fmt/format.h>

#include <ostream>

#include "trainer/training/console.h"

namespace switchyard {

ProgressLine::~ProgressLine() { remove(); }

void ProgressLine::show(int64_t done, int64_t total, double seconds) {
  if (!begin_) begin_ = shown_at_ = seconds;
  if (done >= total) return remove();
  const double interval = is_terminal_ ? 0.2 : 60.0;  // seconds
  if (done == 0 || seconds < shown_at_ + interval) return;
  const double bytes_per_second = static_cast<double>(done) / (seconds - *begin_);
  remove();
  out_ << fmt::format("{:3} %  {:.1f} of {:.1f} MB  {:.2f} MB/s  {} left", 100 * done / total,
                      static_cast<double>(done) * 1e-6, static_cast<double>(total) * 1e-6,
                      bytes_per_second * 1e-6,
                      format_duration(static_cast<double>(total - done) / bytes_per_second));
  if (!is_terminal_) out_ << '\n';
  out_ << std::flush;
  on_screen_ = is_terminal_;
  shown_at_ = seconds;
}

void ProgressLine::remove() {
  if (on_screen_) out_ << "\r\033[K" << std::flush;
  on_screen_ = false;
}

}  // namespace switchyard
