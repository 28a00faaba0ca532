#pragma once

#include <bit>
#include <cstdint>

namespace switchyard {

// Scores as unsigned integers, of which the smallest are best; constexpr, so that CUDA kernels call
// the same functions.

constexpr uint32_t selection_key(uint16_t distance) { return distance; }

constexpr uint32_t selection_key(float score) {
  if (score != score) return UINT32_MAX;
  if (score == 0.0f) score = 0.0f;  // -0 equals 0
  const auto bits = std::bit_cast<uint32_t>(score);
  // Of positive numbers the bits rise with the value, of negative ones they fall.
  const uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return ~rising;
}

template <class Score>
inline constexpr int kSelectionKeyBits = 8 * static_cast<int>(sizeof(Score));

}  // namespace switchyard
