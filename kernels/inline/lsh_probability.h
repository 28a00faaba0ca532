#pragma once

#include <cstdint>

namespace switchyard {

// base^n, n >= 0, by repeated squaring.
constexpr double power(double base, int64_t n) {
  double result = 1.0;
  for (; n > 0; n /= 2, base *= base) {
    if (n % 2 == 1) result *= base;
  }
  return result;
}

// The probability that a query and a key share the bucket in at least two of `tables` hash tables,
// if each of the `bits` bits of a bucket agrees with probability p: MagicPIG (Chen et al. 2024,
// arXiv 2410.16179), algorithm 1, with a = p^bits:
//   1 - (1 - a)^tables - tables a (1 - a)^(tables - 1)
constexpr double lsh_probability(double p, int64_t bits, int64_t tables) {
  const double a = power(p, bits);
  const double u = 1.0 - power(1.0 - a, tables - 1) * (1.0 - a + static_cast<double>(tables) * a);
  return u > 0.0 ? u : 0.0;  // the difference may round below zero
}

}  // namespace switchyard
