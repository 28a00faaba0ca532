#pragma once

// For .cu files that sum over rows: blocks write the sums of their rows, and add_partials adds
// these in a fixed order.

#include "kernels/cuda/launch.h"

namespace switchyard::cuda {

constexpr int kPartialTile = 32;

// first[c] += sum over blocks of partial[b][c], and second[c] of partial[b][width + c], in a fixed
// order. A block of 32 x 32 threads sums 32 columns; blockIdx.y chooses the output.
//   partial  [blocks, gridDim.y * width]
static __global__ void add_partials_kernel(const float* partial, int64_t blocks, int64_t width,
                                           float* first, float* second) {
  __shared__ float tile[kPartialTile][kPartialTile];
  const int64_t column = int64_t{blockIdx.x} * kPartialTile + threadIdx.x;
  const int64_t stride = gridDim.y * width;
  const float* from = partial + blockIdx.y * width + column;
  float total = 0.0f;
  if (column < width) {
#pragma unroll 4
    for (int64_t b = threadIdx.y; b < blocks; b += kPartialTile) total += from[b * stride];
  }
  tile[threadIdx.y][threadIdx.x] = total;
  __syncthreads();  // all rows of threads have their sums
  if (threadIdx.y != 0 || column >= width) return;
  for (int y = 1; y < kPartialTile; ++y) total += tile[y][threadIdx.x];
  float* out = blockIdx.y == 0 ? first : second;
  out[column] += total;
}

// `second` may be null; then `partial` is [blocks, width].
inline void add_partials(Stream& stream, const float* partial, int64_t blocks, int64_t width,
                         float* first, float* second) {
  launch(add_partials_kernel, dim3(num_blocks(width, kPartialTile), second ? 2 : 1),
         dim3(kPartialTile, kPartialTile), 0, stream, partial, blocks, width, first, second);
}

}  // namespace switchyard::cuda
