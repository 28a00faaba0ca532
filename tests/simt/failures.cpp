#include "tests/simt/failures.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

namespace simt {
namespace {

// What one of the variables says. It is read once, because tests make millions of calls.
class Plan {
 public:
  explicit Plan(const char* variable) {
    if (const char* text = std::getenv(variable)) set(text);
  }

  // CALL:N; an empty text plans nothing.
  void set(const std::string& text) {
    const size_t colon = text.find(':');
    call_ = text.substr(0, colon);
    first_ = colon == std::string::npos ? 1 : std::stoi(text.substr(colon + 1));
    calls_ = 0;
  }

  // Whether the planned call has been reached, and this is one of its name.
  bool reaches(const char* call) {
    if (call_.empty() || call_ != call) return false;
    return ++calls_ >= first_;
  }
  bool has_been_reached() const { return !call_.empty() && calls_ >= first_; }

 private:
  std::string call_;
  int first_ = 1;
  std::atomic<int> calls_{0};
};

Plan& failure() {
  static Plan plan("SWITCHYARD_EMULATED_FAILURE");
  return plan;
}

}  // namespace

bool fails(const char* call) {
  static Plan hang("SWITCHYARD_EMULATED_HANG");
  while (hang.reaches(call)) pause();
  const bool is_planned = failure().reaches(call);
  return is_planned || (failure().has_been_reached() && std::string_view(call).starts_with("cuda"));
}

PlannedFailure::PlannedFailure(const std::string& plan) { failure().set(plan); }
PlannedFailure::~PlannedFailure() { failure().set(""); }

}  // namespace simt
