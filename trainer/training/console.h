#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>

#include "trainer/training/metrics.h"

namespace switchyard {

struct ConsoleOptions {
  int64_t first_step = 1;  // of this process; later than 1 when resumed
  int64_t max_steps = 0;
  int64_t interval = 10;  // steps between lines
  bool is_terminal = false;
  int columns = 80;  // width of the terminal
};

// The console's output for a person: one line per interval, per evaluation and for the last step,
// and on a terminal a progress bar below them with the time left. Used by one rank.
class Console {
 public:
  Console(std::ostream& out, const ConsoleOptions& options);
  // Leaves the cursor on a line of its own.
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  void step(const StepMetrics& metrics);
  // Prints a line of its own above the progress bar.
  void message(std::string_view text);

 private:
  void print_line(std::string_view text);
  void draw_bar(int64_t step);

  std::ostream& out_;
  ConsoleOptions options_;
  double seconds_per_step_ = 0.0;  // running mean
  double interval_seconds_ = 0.0;  // since the last line
  double interval_tokens_ = 0.0;   // in these seconds
  std::string bar_;                // on the screen now; empty if there is none
};

// "step  120/1500  loss 4.1234  val 4.2000  aux 1.05  load 1.40  norm 0.92  lr 3.00e-04 ..."
std::string format_step(const StepMetrics& metrics, int64_t max_steps, double tokens_per_s);
// "1:02:03" or "2:03"
std::string format_duration(double seconds);
// "950", "12.3k", "4.56M"
std::string format_count(double count);
// Whether a person watches standard output. mpirun gives its ranks a terminal of their own even if
// its own output is written to a file, so the parent's standard output is checked, too.
bool is_watched();
// The columns of the terminal behind standard output, 80 if there is none.
int terminal_columns();

}  // namespace switchyard
