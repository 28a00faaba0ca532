#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace switchyard {

// exp(x) within 2 units in the last place, in a form that compilers turn into vector instructions
// (Cephes' expf: exp(x) = 2^n exp(r), |r| <= ln(2) / 2). 0 below -87, exp(88) above 88; NaN stays
// NaN.
inline float fast_exp(float x) {
  constexpr float kLowest = -87.0f, kHighest = 88.0f;  // 2^n stays a normal number between
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // n * kLn2High is exact
  float y = x < kLowest ? kLowest : x;
  y = y > kHighest ? kHighest : y;
  const float n = std::nearbyint(y * kLog2E);
  const float r = (y - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const float scaled = p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < kLowest ? 0.0f : scaled;
}

}  // namespace switchyard
