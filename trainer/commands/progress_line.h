#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>

namespace switchyard {

// Shows a person how far a command is with a text: on a terminal one line that changes, removed at
// the end; elsewhere a line per minute.
class ProgressLine {
 public:
  ProgressLine(std::ostream& out, bool is_terminal) : out_(out), is_terminal_(is_terminal) {}
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  //   done, total  bytes of text
  //   seconds      of a steady clock; speed and time left count from the first call on, when the
  //                work on the text begins
  void show(int64_t done, int64_t total, double seconds);

 private:
  void remove();

  std::ostream& out_;
  bool is_terminal_;
  bool on_screen_ = false;
  std::optional<double> begin_;  // seconds, as the next
  double shown_at_ = 0.0;
};

}  // namespace switchyard
