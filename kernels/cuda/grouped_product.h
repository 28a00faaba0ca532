#pragma once

// For .cu files: many products of bf16 matrices in one launch (kernels/grouped_product.cu).

#include <span>

#include "kernels/device.h"

namespace switchyard::cuda {

// c [m, n] = op(a) op(b), all row-major and without gaps; sums in f32. Addresses are aligned to 16
// bytes, and the rows of a, b and c are multiples of that.
//   a  [m, k], or [k, m] if transposed     b  [k, n], or [n, k] if transposed
struct GroupedProduct {
  const void *a, *b;
  void* c;
  int m, n, k;
};

enum class GroupedOperands {
  rows_by_transposed,     // a b^T, c bf16: forward
  rows_by_columns,        // a b, c bf16: gradient of the input
  transposed_by_columns,  // c += a^T b, c f32: gradient of the weight
};

void grouped_product(Stream& stream, GroupedOperands operands,
                     std::span<const GroupedProduct> products);

}  // namespace switchyard::cuda
