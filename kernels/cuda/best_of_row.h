#pragma once

// For .cu files in which a warp holds a row of up to 32 kPerLane keys: lane l has those of columns
// l + 32 i, i < kPerLane.

#include <climits>
#include <cstdint>

#include "kernels/cuda/device_math.h"

namespace switchyard::cuda {

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// Maps greater floats to greater integers, and no float to 0. -0 maps to the same integer as 0. The
// argument must not be NaN.
__device__ inline uint32_t ordered(float key) {
  const uint32_t bits = __float_as_uint(key + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
// The inverse of `ordered`.
__device__ inline float value_of(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The greatest key that a lane holds, and its index in the lane; of equal keys the lower index.
struct LaneBest {
  uint32_t key;
  int place;
};

template <int kPerLane>
__device__ inline LaneBest best_of_lane(const uint32_t (&keys)[kPerLane]) {
  LaneBest best{keys[0], 0};
#pragma unroll
  for (int i = 1; i < kPerLane; ++i) {
    if (keys[i] > best.key) best = {keys[i], i};
  }
  return best;
}

// The column of the greatest key; of equal keys the lower column.
__device__ inline int best_of_row(const LaneBest& best) {
  const uint32_t greatest = __reduce_max_sync(kAllLanes, best.key);
  const int mine = best.key == greatest ? lane_id() + best.place * kWarpSize : INT_MAX;
  return __reduce_min_sync(kAllLanes, mine);
}

}  // namespace switchyard::cuda
