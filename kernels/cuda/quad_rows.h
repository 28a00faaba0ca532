#pragma once

// For .cu files: rows of bf16 between the registers that tensor cores fill and memory.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device_math.h"

namespace switchyard::cuda {

constexpr int kQuadColumns = 32;  // of a row that a quad of lanes holds

// Tensor cores leave a row of 32 columns in four neighbouring lanes: lane q has columns 8 i + 2 q
// and the next in word i. Afterwards lane q has columns 8 q to 8 q + 7, which are 16 bytes of
// memory. The same exchange leads back. Every lane of the warp must call it.
__device__ inline void exchange_in_quad(uint32_t (&words)[4]) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool is_upper = (threadIdx.x & static_cast<unsigned int>(distance)) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & distance) != 0) continue;
      uint32_t &low = words[i], &high = words[i + distance];
      const uint32_t received = __shfl_xor_sync(kAllLanes, is_upper ? low : high, distance);
      (is_upper ? low : high) = received;
    }
  }
}

}  // namespace switchyard::cuda
