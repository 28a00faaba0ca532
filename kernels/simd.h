#pragma once

#include <bit>
#include <cstdint>
#include <experimental/simd>

#include "kernels/bfloat16.h"

namespace switchyard::simd {

// Vectors of the standard library (Parallelism TS 2), for loops whose accumulators must stay in
// registers: of such, GCC 12 sums the lanes of `omp simd` reductions one after the other.

using Floats = std::experimental::native_simd<float>;
inline constexpr int64_t kLanes = static_cast<int64_t>(Floats::size());

inline Floats load(const float* from) { return Floats(from, std::experimental::element_aligned); }

// Widened in registers.
inline Floats load(const bfloat16* from) {
  using Words = std::experimental::rebind_simd_t<uint32_t, Floats>;
  const Words words([&](auto lane) { return uint32_t{from[lane].bits}; });
  return std::bit_cast<Floats>(words << 16);
}

inline void store(Floats values, float* to) {
  values.copy_to(to, std::experimental::element_aligned);
}

inline float sum_of(Floats values) { return std::experimental::reduce(values); }
inline float max_of(Floats values) { return std::experimental::hmax(values); }

}  // namespace switchyard::simd
