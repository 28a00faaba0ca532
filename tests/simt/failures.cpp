#include "tests/simt/failures.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

namespace simt {
namespace {

// One of the variables.
class Plan {
 public:
  explicit Plan(const char* variable) : variable_(variable) {}

  // Whether the planned call has been reached, and this is one of its name.
  bool reaches(std::string_view call) {
    const char* text = std::getenv(variable_);
    if (text == nullptr) {
      calls_ = 0;
      return false;
    }
    const std::string_view plan(text);
    const size_t colon = plan.find(':');
    if (plan.substr(0, colon) == call) ++calls_;
    first_ = colon == std::string_view::npos ? 1 : std::atoi(text + colon + 1);
    return has_been_reached() && plan.substr(0, colon) == call;
  }
  bool has_been_reached() const { return calls_ >= first_; }

 private:
  const char* variable_;
  std::atomic<int> calls_{0}, first_{1};
};

}  // namespace

bool fails(const char* call) {
  static Plan failure("SWITCHYARD_EMULATED_FAILURE"), hang("SWITCHYARD_EMULATED_HANG");
  while (hang.reaches(call)) pause();
  const bool is_planned = failure.reaches(call);
  return is_planned || (failure.has_been_reached() && std::string_view(call).starts_with("cuda"));
}

}  // namespace simt
