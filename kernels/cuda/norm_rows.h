#pragma once

// For the norms' .cu files: how the threads of a block share rows of [rows, width] (row_blocks.h),
// sums over a row, and sums over rows for the gradients of weights.
//
// A row belongs to blockDim.x threads, a power of two; a block works on blockDim.y rows at a time.
// Thread threadIdx.x of a row holds the columns
//   (step * blockDim.x + threadIdx.x) * kVec + i,  step < kSteps, i < kVec
// in registers, so that each element is read from memory once. Short rows belong to one warp or a
// part of it, and are summed without a barrier.

#include <cstdint>

#include "kernels/cuda/add_partials.h"
#include "kernels/cuda/row_blocks.h"
#include "kernels/cuda/row_sums.h"

namespace switchyard::cuda {

// 16 bytes of T, or one element if addresses or the width do not allow 16-byte accesses.
template <class T, int kVec>
struct alignas(kVec * sizeof(T)) Pack {
  T element[kVec];
};

// This thread's first column in a step.
template <int kVec>
__device__ inline int row_column(int step) {
  return (step * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kVec;
}

// A thread's part of a row of one tensor. With kHeld it stays in registers, unconverted; else it is
// read again for every use, mostly from the L1 cache.
template <class T, int kVec, int kSteps, bool kHeld>
class RowPart {
 public:
  __device__ void load(int step, const T* address) {
    if constexpr (kHeld) kept_[step] = *reinterpret_cast<const Pack<T, kVec>*>(address);
  }
  __device__ void get(int step, const T* address, float (&out)[kVec]) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) out[i] = static_cast<float>(kept_[step].element[i]);
    } else {
      load_floats<kVec>(address, out);
    }
  }

 private:
  Pack<T, kVec> kept_[kHeld ? kSteps : 1];
};

// Whether a backward kernel may keep `tensors` parts of a row and its `sums` sums per column:
// up to 96 of the 128 registers that kMaxRowThreads threads have each.
template <class T, int kVec, int kSteps>
constexpr bool fits_registers(int tensors, int sums) {
  constexpr int kPackRegisters = (kVec * static_cast<int>(sizeof(T)) + 3) / 4;
  return kSteps * (tensors * kPackRegisters + sums * kVec) <= 96;
}

// ---- Sums over rows ----------------------------------------------------------------------------

// Bytes of shared memory that store_column_sums needs.
inline size_t column_sums_shared(int64_t width, RowBlock block) {
  return block.y == 1 ? 0 : static_cast<size_t>(width) * block.y * sizeof(float);
}

// out[column] = the sum over the block's rows of threads, in their order. Every thread must call
// it. A barrier must separate it from earlier and from later uses of `shared`.
template <int kVec, int kSteps>
__device__ inline void store_column_sums(const float (&sums)[kSteps][kVec], int width,
                                         float* shared, float* out) {
  float* mine = blockDim.y == 1 ? out : shared + threadIdx.y * width;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int column = row_column<kVec>(s);
    if (column < width) store_floats<kVec>(mine + column, sums[s]);
  }
  if (blockDim.y == 1) return;
  __syncthreads();  // the sums of all rows of threads are visible below
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  for (int c = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); c < width; c += threads) {
    float total = 0.0f;
    for (unsigned int y = 0; y < blockDim.y; ++y) total += shared[y * width + c];
    out[c] = total;
  }
}

}  // namespace switchyard::cuda
