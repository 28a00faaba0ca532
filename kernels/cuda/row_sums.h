#pragma once

// For .cu files whose blocks work on several rows at a time: sums over the threads of a row.

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"

namespace switchyard::cuda {

constexpr int kMaxRowWarps = kMaxRowThreads / kWarpSize;

// The sums of kCount values over the threads of a row, on each of these threads. Every thread of
// the block must call it. `scratch` holds kCount * kMaxRowWarps floats of shared memory; two calls
// without a barrier between them need different scratch.
template <int kCount>
__device__ inline void row_sums(float (&values)[kCount], float* scratch) {
  const int row_threads = static_cast<int>(blockDim.x);
  for (int offset = min(row_threads, kWarpSize) / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(kAllLanes, values[i], offset);
  }
  if (row_threads <= kWarpSize) return;
  const int row_warps = row_threads / kWarpSize;
  float* of_row = scratch + static_cast<int>(threadIdx.y) * row_warps * kCount;
  if (threadIdx.x % kWarpSize == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) of_row[threadIdx.x / kWarpSize * kCount + i] = values[i];
  }
  __syncthreads();  // every warp's sums are visible below
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = 0.0f;
  for (int w = 0; w < row_warps; ++w) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += of_row[w * kCount + i];
  }
}

}  // namespace switchyard::cuda
