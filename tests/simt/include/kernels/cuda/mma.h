#pragma once

// Stands in for kernels/cuda/mma.h: the same functions, computed on the host.

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "kernels/cuda/fragments.h"
#include "kernels/runtime/bfloat16.h"

namespace switchyard::cuda {

inline uint32_t pack_bf16(float first, float second) {
  return static_cast<uint32_t>(bfloat16(first).bits) | static_cast<uint32_t>(bfloat16(second).bits)
                                                           << 16;
}

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

inline void multiply_add(const FragmentA& a, const FragmentB& b, FragmentC& c) {
  const simt_mma::Operands mine{a, b};
  const std::byte* lanes = simt::meet_warp(0xffffffffu, &mine, sizeof(mine));
  for (int i = 0; i < 4; ++i) {
    const int row = simt::lane() / 4 + i / 2 * 8, column = simt::lane() % 4 * 2 + i % 2;
    float sum = 0.0f;
    for (int k = 0; k < 16; ++k) {
      sum += simt_mma::a_at(lanes, row, k) * simt_mma::b_at(lanes, k, column);
    }
    c.value[i] += sum;
  }
}

template <bool kTransposed>
void load_matrices(const bfloat16* row, uint32_t (&out)[4]) {
  const std::byte* lanes = simt::meet_warp(0xffffffffu, &row, sizeof(row));
  const int group = simt::lane() / 4, pair = simt::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const auto at = [&](int r, int c) {
      return simt::value_of_lane<const bfloat16*>(lanes, 8 * i + r)[c].bits;
    };
    const uint32_t low = kTransposed ? at(2 * pair, group) : at(group, 2 * pair);
    const uint32_t high = kTransposed ? at(2 * pair + 1, group) : at(group, 2 * pair + 1);
    out[i] = low | high << 16;
  }
}

}  // namespace switchyard::cuda
