#include "trainer/training/console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <ostream>
#include <system_error>

namespace switchyard {
namespace {

// Weight of a new step in the running mean of the time per step: about the last 20 count.
constexpr double kNewStepWeight = 0.05;

}  // namespace

std::string format_duration(double seconds) {
  const auto total = static_cast<int64_t>(std::llround(std::max(seconds, 0.0)));
  const int64_t hours = total / 3600, minutes = total / 60 % 60;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, total % 60);
  return fmt::format("{}:{:02}", minutes, total % 60);
}

std::string format_count(double count) {
  // The bounds lie just below a power of ten, because larger counts are rounded up to it.
  if (count >= 999.95e6) return fmt::format("{:.2f}G", count / 1e9);
  if (count >= 999.95e3) return fmt::format("{:.2f}M", count / 1e6);
  if (count >= 999.5) return fmt::format("{:.1f}k", count / 1e3);
  return fmt::format("{:.0f}", count);
}

std::string format_step(const StepMetrics& m, int64_t max_steps, double tokens_per_s) {
  const std::string last = std::to_string(max_steps);
  std::string line = fmt::format("step {:>{}}/{}  loss {:.4f}", m.step, last.size(), last, m.loss);
  const auto out = std::back_inserter(line);
  if (m.val_loss) fmt::format_to(out, "  val {:.4f}", *m.val_loss);
  for (const auto& [name, loss] : m.val_losses) fmt::format_to(out, "  {} {:.4f}", name, loss);
  if (m.max_load_ratio > 0.0) {
    fmt::format_to(out, "  aux {:.3f}  load {:.2f}", m.aux_loss, m.max_load_ratio);
  }
  if (m.dropped_tokens > 0) {
    fmt::format_to(out, "  dropped {}", format_count(static_cast<double>(m.dropped_tokens)));
  }
  fmt::format_to(out, "  norm {:.3f}  lr {:.2e}  {} tok/s  {:.0f} ms", m.grad_norm, m.lr,
                 format_count(tokens_per_s), m.step_ms);
  if (m.skipped) line += "  skipped: the gradient is not finite";
  return line;
}

bool is_watched() {
  if (isatty(STDOUT_FILENO) != 1) return false;
  std::error_code unreadable;
  const std::string parent = fmt::format("/proc/{}/fd/1", getppid());
  const std::string target = std::filesystem::read_symlink(parent, unreadable).string();
  return !unreadable && (target.starts_with("/dev/pts/") || target.starts_with("/dev/tty"));
}

int terminal_columns() {
  winsize size{};
  const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

Console::Console(std::ostream& out, const ConsoleOptions& options) : out_(out), options_(options) {}

Console::~Console() {
  if (!bar_.empty()) out_ << '\n' << std::flush;
}

void Console::step(const StepMetrics& metrics) {
  const double seconds = metrics.step_ms * 1e-3;
  const bool first = metrics.step == options_.first_step;
  seconds_per_step_ =
      first ? seconds : seconds_per_step_ + kNewStepWeight * (seconds - seconds_per_step_);
  interval_seconds_ += seconds;
  interval_tokens_ += metrics.tokens_per_s * seconds;

  const bool at_interval = options_.interval > 0 && metrics.step % options_.interval == 0;
  const bool last = metrics.step == options_.max_steps;
  if (at_interval || first || last || metrics.val_loss || metrics.skipped) {
    const double rate = interval_seconds_ > 0.0 ? interval_tokens_ / interval_seconds_ : 0.0;
    print_line(format_step(metrics, options_.max_steps, rate));
    interval_seconds_ = interval_tokens_ = 0.0;
  }
  if (options_.is_terminal) draw_bar(metrics.step);
}

void Console::message(std::string_view text) {
  const std::string bar = bar_;
  print_line(text);
  bar_ = bar;
  out_ << bar_ << std::flush;
}

void Console::print_line(std::string_view text) {
  // The line overwrites the bar, if there is one.
  if (!bar_.empty()) out_ << "\r\033[K";
  bar_.clear();
  out_ << text << '\n' << std::flush;
}

void Console::draw_bar(int64_t step) {
  const double share = std::clamp(
      static_cast<double>(step) / static_cast<double>(std::max<int64_t>(options_.max_steps, 1)),
      0.0, 1.0);
  const double seconds_left = static_cast<double>(options_.max_steps - step) * seconds_per_step_;
  const std::string label =
      fmt::format(" {:3.0f} %  {} left", std::floor(share * 100.0), format_duration(seconds_left));
  // One column stays free, because a terminal breaks the line when the last column is filled.
  const auto room = std::max<int64_t>(options_.columns - 3 - static_cast<int64_t>(label.size()), 0);
  const auto filled = static_cast<int64_t>(share * static_cast<double>(room));
  const bool was_drawn = !bar_.empty();
  bar_ = fmt::format("[{:=<{}}{:<{}}]{}", "", filled, "", room - filled, label);
  out_ << (was_drawn ? "\r\033[K" : "") << bar_ << std::flush;
}

}  // namespace switchyard
