#pragma once

#include <cstdint>

#include "kernels/linear/matmul.h"

namespace switchyard {

// A row-major matrix as it is stored, with `stride` elements from row to row. op(x) is x or x^T.
struct MatrixOperand {
  const void* data = nullptr;
  int64_t stride = 0;
  Transpose transpose = Transpose::no;
};

// c [m, n] = op(a) [m, k] op(b) [k, n], or += where accumulating: f32 in host memory, rows of c
// without gaps. It runs on the calling thread only, for loops that give each thread whole products.
void multiply_block(int64_t m, int64_t n, int64_t k, MatrixOperand a, MatrixOperand b,
                    Accumulate accumulate, float* c);

}  // namespace switchyard
