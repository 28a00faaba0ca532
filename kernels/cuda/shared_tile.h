#pragma once

// For .cu files: tiles of bf16 matrices in shared memory, as tensor cores read them.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/async_copy.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"
#include "kernels/runtime/bfloat16.h"

namespace switchyard::cuda {

// Rows of kWidth elements, a multiple of 64, in pieces of 16 bytes. Piece c of row r lies at
// c ^ (r % 8): eight rows' pieces of one column, which ldmatrix reads together, are then in
// different banks.
template <int kWidth>
struct SharedTile {
  bfloat16* data;

  __device__ bfloat16* piece(int row, int column) const {
    return data + row * kWidth + ((column / 8) ^ (row % 8)) * 8;
  }
};

template <int kWidth>
constexpr size_t tile_bytes(int rows) {
  return sizeof(bfloat16) * kWidth * static_cast<size_t>(rows);
}

// Starts to copy rows [first, first + kRows) of a matrix, with kThreads threads; rows beyond
// num_rows become zero.
//   stride  elements from one row to the next
template <int kRows, int kThreads, int kWidth>
__device__ void start_rows(const bfloat16* base, int64_t stride, int64_t first, int64_t num_rows,
                           SharedTile<kWidth> tile) {
  constexpr int kPieces = kWidth / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += kThreads) {
    const int row = i / kPieces, column = i % kPieces * 8;
    const bool is_here = first + row < num_rows;
    async_copy_16(tile.piece(row, column), base + (is_here ? first + row : 0) * stride + column,
                  is_here);
  }
}

// A[m][k] = tile[row + m][column + k], 16 x 16
template <int kWidth>
__device__ FragmentA load_a_of_rows(SharedTile<kWidth> tile, int row, int column) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  FragmentA a;
  load_matrices<false>(tile.piece(row + lane % 16, column + lane / 16 * 8), a.pair);
  return a;
}

// B[k][n] = tile[row + n][column + k], for n < 8 and for n from 8 to 15
template <int kWidth>
__device__ void load_b_of_rows(SharedTile<kWidth> tile, int row, int column, FragmentB (&b)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  uint32_t pairs[4];
  load_matrices<false>(tile.piece(row + lane / 16 * 8 + lane % 8, column + lane / 8 % 2 * 8),
                       pairs);
  b[0] = {{pairs[0], pairs[1]}};
  b[1] = {{pairs[2], pairs[3]}};
}

// B[k][n] = tile[row + k][column + n], for n < 8 and for n from 8 to 15
template <int kWidth>
__device__ void load_b_of_columns(SharedTile<kWidth> tile, int row, int column, FragmentB (&b)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  uint32_t pairs[4];
  load_matrices<true>(tile.piece(row + lane % 16, column + lane / 16 * 8), pairs);
  b[0] = {{pairs[0], pairs[1]}};
  b[1] = {{pairs[2], pairs[3]}};
}

}  // namespace switchyard::cuda
