#pragma once

// For the .cu files of attention on tensor cores: tiles of rows, products of them, and masks.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_problem.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/shared_tile.h"

namespace switchyard::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRowsPerWarp = 16;
constexpr int kRows = kWarps * kRowsPerWarp;  // of the block's own tile
constexpr int kForwardKeys = 64;              // of a streamed tile, forward
constexpr int kBackwardColumns = 32;          // backward: keys for dq, queries for dk and dv
// As many blocks as registers and shared memory allow; it limits the registers that the compiler
// may use per thread.
template <int kDim>
constexpr int kBlocksPerMultiprocessor = kDim == 64 ? 3 : 2;
constexpr float kLog2E = 1.4426950408889634f;

// scores [16, kCount] += a tile^T, where a(c) gives the left operand's columns 16 c to 16 c + 15.
template <int kCount, int kDim, class A>
__device__ void multiply_by_rows(const A& a, SharedTile<kDim> tile,
                                 FragmentC (&scores)[kCount / 8]) {
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) {
    const FragmentA left = a(c);
#pragma unroll
    for (int n = 0; n < kCount / 16; ++n) {
      FragmentB right[2];
      load_b_of_rows(tile, n * 16, c * 16, right);
      multiply_add(left, right[0], scores[2 * n]);
      multiply_add(left, right[1], scores[2 * n + 1]);
    }
  }
}

// sums [16, kDim] += weights tile; the weights [16, kCount] are rounded to bf16.
template <int kCount, int kDim>
__device__ void add_products(const FragmentC (&weights)[kCount / 8], SharedTile<kDim> tile,
                             FragmentC (&sums)[kDim / 8]) {
#pragma unroll
  for (int c = 0; c < kCount / 16; ++c) {
    const auto& left = weights[2 * c].value;
    const auto& right = weights[2 * c + 1].value;
    const FragmentA a{{pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]),
                       pack_bf16(right[0], right[1]), pack_bf16(right[2], right[3])}};
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      FragmentB b[2];
      load_b_of_columns(tile, c * 16, n * 16, b);
      multiply_add(a, b[0], sums[2 * n]);
      multiply_add(a, b[1], sums[2 * n + 1]);
    }
  }
}

// Stores the rows of the warp's fragments, multiplied by `factor`, as rows from `first` on.
template <int kDim>
__device__ void store_rows(const FragmentC (&sums)[kDim / 8], const float (&factor)[2],
                           int64_t first, int64_t num_rows, int64_t stride, bfloat16* base) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + lane / 4 + half * 8;
    if (row >= num_rows) continue;
    bfloat16* at = base + row * stride + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<uint32_t*>(at + n * 8) = pack_bf16(
          factor[half] * sums[n].value[2 * half], factor[half] * sums[n].value[2 * half + 1]);
    }
  }
}

// scores *= factor. With has_unseen, scores of keys that the query does not see become -infinity.
//   query, key  of the tile's first row and column
template <int kCount>
__device__ void scale_and_mask(const AttentionProblem& p, int64_t b, int64_t query, int64_t key,
                               float factor, bool has_unseen, FragmentC (&scores)[kCount / 8]) {
#pragma unroll
  for (FragmentC& s : scores) {
#pragma unroll
    for (float& value : s.value) value *= factor;
  }
  if (!has_unseen) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = query + lane / 4 + half * 8;
    // The columns of the row's first and last key within the tile.
    const auto begin = static_cast<int>((row < p.seq_len ? p.first_key(b, row) : 0) - key);
    const auto end = static_cast<int>(row - key);
#pragma unroll
    for (int n = 0; n < kCount / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = n * 8 + lane % 4 * 2 + i;
        if (column < begin || column > end) scores[n].value[2 * half + i] = -INFINITY;
      }
    }
  }
}

inline dim3 tiles_of(const AttentionProblem& p, int64_t heads, int64_t batch) {
  return dim3(num_blocks(p.seq_len, kRows), static_cast<unsigned int>(heads),
              static_cast<unsigned int>(batch));
}

// Calls body.operator()<kDim>().
template <class Body>
void dispatch_tensor_head_dim(int64_t head_dim, const Body& body) {
  head_dim == 64 ? body.template operator()<64>() : body.template operator()<128>();
}

}  // namespace switchyard::cuda
