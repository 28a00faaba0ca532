#pragma once

#include <concepts>
#include <type_traits>

namespace switchyard {

// Requires n >= 0 and a divisor > 0.
template <std::integral T>
constexpr T ceil_div(T n, std::type_identity_t<T> divisor) {
  return (n + divisor - 1) / divisor;
}

// The lowest multiple of `multiple` that is not below n.
template <std::integral T>
constexpr T round_up(T n, std::type_identity_t<T> multiple) {
  return ceil_div(n, multiple) * multiple;
}

}  // namespace switchyard
