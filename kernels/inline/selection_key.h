#pragma once

#include <bit>
#include <cstdint>

namespace switchyard {

// Scores as unsigned integers; smaller integers are better scores. The functions are constexpr, so
// that CUDA kernels call the same ones.

constexpr uint32_t selection_key(uint16_t distance) { return distance; }

constexpr uint32_t selection_key(float score) {
  if (score != score) return UINT32_MAX;
  if (score == 0.0f) score = 0.0f;  // -0 equals 0
  const auto bits = std::bit_cast<uint32_t>(score);
  // The bits of positive numbers rise with the value, those of negative numbers fall.
  const uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return ~rising;
}

template <class Score>
inline constexpr int kSelectionKeyBits = 8 * static_cast<int>(sizeof(Score));

}  // namespace switchyard
