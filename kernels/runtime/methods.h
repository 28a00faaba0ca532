#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>

#include "kernels/runtime/enum_names.h"

namespace switchyard {

// For ops that have several methods. Results of different methods are rounded differently, so all
// ranks of a job use the same one, and a run keeps its own when it is resumed. Which one is fastest
// depends on the machine, so it is measured.

template <NamedEnum Method>
inline constexpr size_t kNumMethods = names_of(Method{}).size();

// Seconds that each method takes for the same work. A machine that does not have a method takes
// infinitely long.
template <NamedEnum Method>
struct MethodSeconds {
  static constexpr double kNever = std::numeric_limits<double>::infinity();

  std::array<double, kNumMethods<Method>> seconds{};  // by the value of the enum

  // Of a machine that has one method.
  static MethodSeconds only(Method method) {
    MethodSeconds one;
    one.seconds.fill(kNever);
    one[method] = 0.0;
    return one;
  }

  double& operator[](Method method) { return seconds[static_cast<size_t>(method)]; }
  double operator[](Method method) const { return seconds[static_cast<size_t>(method)]; }
  bool has(Method method) const { return std::isfinite((*this)[method]); }
  // The first of equals.
  Method fastest() const {
    return static_cast<Method>(std::min_element(seconds.begin(), seconds.end()) - seconds.begin());
  }
};

// The method of the process; not set at first. While no other thread runs the op, it can be set.
template <NamedEnum Method>
class ChosenMethod {
 public:
  std::optional<Method> get() const {
    const int value = value_.load(std::memory_order_relaxed);
    return value < 0 ? std::nullopt : std::optional(static_cast<Method>(value));
  }
  void set(std::optional<Method> method) { value_ = method ? static_cast<int>(*method) : -1; }

 private:
  std::atomic<int> value_{-1};
};

}  // namespace switchyard
