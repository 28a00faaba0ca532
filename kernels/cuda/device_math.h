#pragma once

// For .cu files: conversions, 16-byte accesses, and reductions over warps and blocks in a fixed
// order.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sizes.h"
#include "kernels/runtime/bfloat16.h"

namespace switchyard::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;

// Rounds to nearest even in one instruction, as bfloat16 does on the host.
template <class T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline bfloat16 from_float<bfloat16>(float value) {
#ifdef __CUDA_ARCH__
  bfloat16 result;
  result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return result;
#else
  return bfloat16(value);
#endif
}

// Reads kCount elements as floats, in pieces of 16 bytes (in one piece if they have fewer bytes).
// The address must be aligned to the size of a piece.
template <int kCount, class T>
__device__ inline void load_floats(const T* address, float (&out)[kCount]) {
  constexpr int kPiece = kCount < 16 / static_cast<int>(sizeof(T)) ? kCount : 16 / sizeof(T);
  struct alignas(kPiece * sizeof(T)) Piece {
    T element[kPiece];
  };
#pragma unroll
  for (int begin = 0; begin < kCount; begin += kPiece) {
    const Piece piece = *reinterpret_cast<const Piece*>(address + begin);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) out[begin + i] = static_cast<float>(piece.element[i]);
  }
}

template <int kCount, class T>
__device__ inline void store_floats(T* address, const float (&values)[kCount]) {
  constexpr int kPiece = kCount < 16 / static_cast<int>(sizeof(T)) ? kCount : 16 / sizeof(T);
  struct alignas(kPiece * sizeof(T)) Piece {
    T element[kPiece];
  };
#pragma unroll
  for (int begin = 0; begin < kCount; begin += kPiece) {
    Piece piece;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) piece.element[i] = from_float<T>(values[begin + i]);
    *reinterpret_cast<Piece*>(address + begin) = piece;
  }
}

// The sum over the 32 lanes, on every lane, added in the same order in every call.
template <class T>
__device__ inline T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

__device__ inline float warp_max(float value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// The sum over the block's threads, on every thread. blockDim.x must be a multiple of 32; `scratch`
// holds one value per warp, in shared memory, and may be used again after a barrier.
template <class T>
__device__ inline T block_sum(T value, T* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int num_warps = static_cast<int>(blockDim.x) / 32;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return warp_sum(lane < num_warps ? scratch[lane] : T{});
}

// The greatest value, on every thread; requirements as for block_sum.
__device__ inline float block_max(float value, float* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int num_warps = static_cast<int>(blockDim.x) / 32;
  value = warp_max(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return warp_max(lane < num_warps ? scratch[lane] : scratch[0]);
}

}  // namespace switchyard::cuda
