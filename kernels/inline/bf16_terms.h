#pragma once

#include <cstdint>

#include "kernels/runtime/bfloat16.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// For the bodies of split_bf16 on both backends; constexpr, so that CUDA kernels call the same
// functions.

// What is left of x after `term` terms have been taken away, as the next one.
constexpr bfloat16 bf16_term(float x, int term) {
  for (int t = 0; t < term; ++t) x -= static_cast<float>(bfloat16(x));
  return bfloat16(x);
}

// Where the three parts of a matrix's elements stand.
struct PartPlaces {
  int64_t columns, row_stride, part_stride;

  PartPlaces(ConstTensorView whole, ConstTensorView parts)
      : columns(whole.dim(1)),
        row_stride(parts.dim(1)),
        part_stride(parts.dim(0) == whole.dim(0) ? columns : whole.num_elements()) {}

  constexpr int64_t at(int64_t i, int part) const {
    return i / columns * row_stride + i % columns + part * part_stride;
  }
};

}  // namespace switchyard
