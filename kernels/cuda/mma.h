#pragma once

// For .cu files: products of small bf16 matrices by the warp's tensor cores (mma.sync, sm_80), and
// how their operands are read from shared memory. Layouts of fragments: PTX ISA, "Matrix fragments
// for mma.m16n8k16". With group = lane / 4 and pair = lane % 4, a lane holds of
//   A [16, 16]  rows group and group + 8, columns 2 pair, 2 pair + 1, and both plus 8
//   B [16, 8]   column group, rows 2 pair, 2 pair + 1, and both plus 8
//   C [16, 8]   rows group and group + 8, columns 2 pair, 2 pair + 1

#include <cuda_runtime.h>
#ifndef SWITCHYARD_EMULATED_CUDA
#include <cuda_bf16.h>
#endif

#include <cstdint>
#include <cstring>

#include "kernels/cuda/device_math.h"
#include "kernels/runtime/bfloat16.h"

namespace switchyard::cuda {

struct FragmentA {
  // (group, 2 pair), (group + 8, 2 pair), (group, 2 pair + 8), (group + 8, 2 pair + 8)
  uint32_t pair[4];
};
struct FragmentB {
  uint32_t pair[2];  // (2 pair, group), (2 pair + 8, group)
};
struct FragmentC {
  float value[4] = {};  // (group, 2 pair), (group, 2 pair + 1), the same of row group + 8
};

// Two floats, rounded, as neighbours in a fragment; `first` in the lower half.
__device__ inline uint32_t pack_bf16(float first, float second) {
#ifdef SWITCHYARD_EMULATED_CUDA
  return static_cast<uint32_t>(bfloat16(first).bits) | static_cast<uint32_t>(bfloat16(second).bits)
                                                           << 16;
#else
  const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
  uint32_t bits;
  memcpy(&bits, &both, sizeof(bits));
  return bits;
#endif
}

#ifdef SWITCHYARD_EMULATED_CUDA

namespace simt_mma {

inline float half_of(uint32_t pair, int index) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * index));
  bfloat16 value;
  std::memcpy(&value, &bits, sizeof(bits));
  return static_cast<float>(value);
}

struct Operands {
  FragmentA a;
  FragmentB b;
};
inline float a_at(const std::byte* lanes, int row, int k) {
  const auto of = simt::value_of_lane<Operands>(lanes, row % 8 * 4 + k % 8 / 2);
  return half_of(of.a.pair[k / 8 * 2 + row / 8], k % 2);
}
inline float b_at(const std::byte* lanes, int k, int column) {
  const auto of = simt::value_of_lane<Operands>(lanes, column * 4 + k % 8 / 2);
  return half_of(of.b.pair[k / 8], k % 2);
}

}  // namespace simt_mma

// c += a b
inline void multiply_add(const FragmentA& a, const FragmentB& b, FragmentC& c) {
  const simt_mma::Operands mine{a, b};
  simt::meet_warp(kAllLanes, &mine, sizeof(mine), [&](const std::byte* lanes) {
    for (int i = 0; i < 4; ++i) {
      const int row = simt::lane() / 4 + i / 2 * 8, column = simt::lane() % 4 * 2 + i % 2;
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) {
        sum += simt_mma::a_at(lanes, row, k) * simt_mma::b_at(lanes, k, column);
      }
      c.value[i] += sum;
    }
  });
}

// out[i] = this lane's pair of the i-th of four 8 x 8 matrices, whose rows lanes 8 i to 8 i + 7
// point at; of its transpose if kTransposed.
template <bool kTransposed>
void load_matrices(const bfloat16* row, uint32_t (&out)[4]) {
  simt::meet_warp(kAllLanes, &row, sizeof(row), [&](const std::byte* lanes) {
    const int group = simt::lane() / 4, pair = simt::lane() % 4;
    for (int i = 0; i < 4; ++i) {
      const auto at = [&](int r, int c) {
        return simt::value_of_lane<const bfloat16*>(lanes, 8 * i + r)[c].bits;
      };
      const uint32_t low = kTransposed ? at(2 * pair, group) : at(group, 2 * pair);
      const uint32_t high = kTransposed ? at(2 * pair + 1, group) : at(group, 2 * pair + 1);
      out[i] = low | high << 16;
    }
  });
}

#else

__device__ inline void multiply_add(const FragmentA& a, const FragmentB& b, FragmentC& c) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b.pair[0]),
        "r"(b.pair[1]));
}

template <bool kTransposed>
__device__ void load_matrices(const bfloat16* row, uint32_t (&out)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  }
}

#endif

}  // namespace switchyard::cuda
