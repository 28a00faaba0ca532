#pragma once

#include <bit>
#include <cstdint>
#include <experimental/simd>
#include <utility>

#include "kernels/runtime/bfloat16.h"

namespace switchyard::simd {

// Vectors of the standard library (Parallelism TS 2), for loops whose accumulators must stay in
// registers: in such loops GCC 12 sums the lanes of `omp simd` reductions one after the other.

using Floats = std::experimental::native_simd<float>;
inline constexpr int64_t kLanes = static_cast<int64_t>(Floats::size());

inline Floats load(const float* from) { return Floats(from, std::experimental::element_aligned); }

// Loads bf16 values and widens them in registers.
inline Floats load(const bfloat16* from) {
  using Words = std::experimental::rebind_simd_t<uint32_t, Floats>;
  const Words words([&](auto lane) { return uint32_t{from[lane].bits}; });
  return std::bit_cast<Floats>(words << 16);
}

inline void store(Floats values, float* to) {
  values.copy_to(to, std::experimental::element_aligned);
}

// `a` and `b` hold values of kWidth lanes each. Returns the values of `a`, then those of `b`, each
// folded into half as many lanes.
template <int kWidth, int... kLane>
Floats fold(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
  using Vector [[gnu::vector_size(sizeof(Floats))]] = float;
  constexpr int kHalf = kWidth / 2;
  const auto x = std::bit_cast<Vector>(a), y = std::bit_cast<Vector>(b);
  const Vector low = __builtin_shufflevector(x, y, (kLane / kHalf * kWidth + kLane % kHalf)...);
  const Vector high =
      __builtin_shufflevector(x, y, (kLane / kHalf * kWidth + kLane % kHalf + kHalf)...);
  return std::bit_cast<Floats>(low + high);
}

// Lane i of the result is the sum of the lanes of values[i]. This takes a third of the instructions
// of kLanes calls of sum_of.
//   values  [kLanes / kWidth]; each is folded into kWidth lanes of the result
template <int kWidth = 1>
Floats sums_of(const Floats* values) {
  if constexpr (kWidth >= kLanes) {
    return values[0];
  } else {
    constexpr int kWider = 2 * kWidth;
    return fold<kWider>(sums_of<kWider>(values), sums_of<kWider>(values + kLanes / kWider),
                        std::make_integer_sequence<int, static_cast<int>(kLanes)>());
  }
}

inline float sum_of(Floats values) { return std::experimental::reduce(values); }
inline float max_of(Floats values) { return std::experimental::hmax(values); }

}  // namespace switchyard::simd
