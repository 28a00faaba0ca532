#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/cpu/simd.h"

namespace switchyard::cpu {

// Swaps the squares of kStep lanes off the diagonal of every square of 2 kStep rows and lanes.
template <int kStep, int... kLane>
void swap_squares(simd::Floats* rows, std::integer_sequence<int, kLane...>) {
  using Vector [[gnu::vector_size(sizeof(simd::Floats))]] = float;
  constexpr int kLanes = static_cast<int>(simd::kLanes);
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kStep) != 0) continue;
    const auto a = std::bit_cast<Vector>(rows[i]), b = std::bit_cast<Vector>(rows[i + kStep]);
    rows[i] = std::bit_cast<simd::Floats>(
        __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? kLanes + kLane - kStep : kLane)...));
    rows[i + kStep] = std::bit_cast<simd::Floats>(
        __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? kLanes + kLane : kLane + kStep)...));
  }
}

// Transposes kLanes rows of as many lanes.
template <int kStep = static_cast<int>(simd::kLanes) / 2>
void transpose_square(simd::Floats* rows) {
  swap_squares<kStep>(rows, std::make_integer_sequence<int, static_cast<int>(simd::kLanes)>());
  if constexpr (kStep > 1) transpose_square<kStep / 2>(rows);
}

// out [cols, rows] = x^T; `stride` elements from row to row of x [rows, cols].
template <class T, class Out>
void transpose(const T* x, int64_t rows, int64_t cols, int64_t stride, Out* out) {
  constexpr int64_t kSide = simd::kLanes;
  for (int64_t i = 0; i < rows; i += kSide) {
    for (int64_t j = 0; j < cols; j += kSide) {
      const T* from = x + i * stride + j;
      Out* to = out + j * rows + i;
      if constexpr (std::is_same_v<Out, float>) {
        if (i + kSide <= rows && j + kSide <= cols) {
          simd::Floats square[kSide];
          for (int64_t l = 0; l < kSide; ++l) square[l] = simd::load(from + l * stride);
          transpose_square(square);
          for (int64_t l = 0; l < kSide; ++l) simd::store(square[l], to + l * rows);
          continue;
        }
      }
      const int64_t height = std::min(kSide, rows - i), width = std::min(kSide, cols - j);
      for (int64_t col = 0; col < width; ++col) {
        for (int64_t row = 0; row < height; ++row) to[col * rows + row] = from[row * stride + col];
      }
    }
  }
}

}  // namespace switchyard::cpu
