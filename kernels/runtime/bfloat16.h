#pragma once

#include <bit>
#include <cstdint>

namespace switchyard {

// The upper half of an f32: 8 bits of exponent, 7 of mantissa. Conversion from f32 rounds to
// nearest even; arithmetic happens in f32.
struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;
  explicit constexpr bfloat16(float value) : bits(round(value)) {}
  // Assigns in place: GCC 12 does not vectorise `#pragma omp simd` loops that assign a temporary.
  constexpr bfloat16& operator=(float value) {
    bits = round(value);
    return *this;
  }
  constexpr operator float() const {  // NOLINT: widening is exact
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }

 private:
  static constexpr uint16_t round(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    // Adding to a NaN's mantissa could carry into the sign, so every NaN becomes a quiet NaN.
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    return static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
  }
};

static_assert(sizeof(bfloat16) == 2);

}  // namespace switchyard
