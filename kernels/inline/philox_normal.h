#pragma once

#include <Random123/philox.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/basic/random.h"
#include "kernels/runtime/host_device.h"

namespace switchyard {

// Normal values from Philox, for the bodies of both backends. Every device must draw the same bits,
// but libraries differ in the last bit of log and cos. Here log and cos use only operations whose
// rounding IEEE 754 defines, and explicit fused multiply-adds, because compilers differ in which
// ones they fuse.

using Philox = r123::Philox4x32;

// Four 32-bit words for counter `block` under the key. The stream id is the counter's upper half,
// because the seed fills the 64-bit key of Philox4x32.
SWITCHYARD_HOST_DEVICE inline Philox::ctr_type draw_words(RandomKey key, uint64_t block) {
  const Philox::ctr_type counter = {
      {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
       static_cast<uint32_t>(key.stream), static_cast<uint32_t>(key.stream >> 32)}};
  const Philox::key_type philox_key = {
      {static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32)}};
  return Philox()(counter, philox_key);
}

// The centre of the word's interval of width 2^-32 in (0, 1).
SWITCHYARD_HOST_DEVICE inline double open_unit(uint32_t word) { return (word + 0.5) * 0x1p-32; }

// log(x) of a normal x > 0, within 2 units in the last place: x = 2^e m with m in [1/sqrt(2),
// sqrt(2)), log(m) = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
SWITCHYARD_HOST_DEVICE inline double portable_log(double x) {
  constexpr uint64_t kOneOverSqrt2 = 0x3fe6a09e667f3bcd;
  const auto bits = std::bit_cast<uint64_t>(x);
  const int64_t exponent = static_cast<int64_t>(bits - kOneOverSqrt2) >> 52;
  const auto m = std::bit_cast<double>(bits - (static_cast<uint64_t>(exponent) << 52));
  const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
  double series = 1.0 / 25;  // 1 / 3 + s2 / 5 + ... + s2^11 / 25
  for (int k = 11; k >= 1; --k) series = fma(series, s2, 1.0 / (2 * k + 1));
  const double log_m = fma(2.0 * s, s2 * series, 2.0 * s);
  return fma(static_cast<double>(exponent), 0.69314718055994530942, log_m);
}

// cos(2 pi u), or sin(2 pi u), for u in [0, 1]: by Taylor series on the nearest quarter turn.
SWITCHYARD_HOST_DEVICE inline double portable_cos_turns(double u, bool sine) {
  // sin(x) is cos(x - a quarter turn).
  const int quarter = static_cast<int>(fma(4.0, u, 0.5));
  const double x = 6.28318530717958647693 * (u - 0.25 * quarter), x2 = x * x;
  const int phase = (quarter + (sine ? 3 : 0)) & 3;
  // Even phases use the series of cos, odd phases that of sin.
  const bool odd = (phase & 1) != 0;
  double series = 1.0;
  for (int k = 9; k >= 1; --k) {
    const double factor = odd ? 1.0 / (2 * k * (2 * k + 1)) : 1.0 / (2 * k * (2 * k - 1));
    series = fma(-x2 * factor, series, 1.0);
  }
  const double magnitude = odd ? x * series : series;
  return phase == 1 || phase == 2 ? -magnitude : magnitude;
}

// Elements 2 i and 2 i + 1 of a block of four words are one Box-Muller pair.
SWITCHYARD_HOST_DEVICE inline float normal_at(RandomKey key, uint64_t index) {
  const Philox::ctr_type words = draw_words(key, index / 4);
  const bool second_pair = index % 4 >= 2;
  const double u = open_unit(second_pair ? words[2] : words[0]);
  const double turns = open_unit(second_pair ? words[3] : words[1]);
  const double radius = sqrt(-2.0 * portable_log(u));
  return static_cast<float>(radius * portable_cos_turns(turns, index % 2 != 0));
}

}  // namespace switchyard
