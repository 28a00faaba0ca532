#pragma once

// Products as the emulated cuBLAS and cuBLASLt compute them: column-major, in double.

#include <cublas_v2.h>

#include "kernels/runtime/bfloat16.h"

namespace simt {

using switchyard::bfloat16;

// A column-major matrix of either type.
struct Matrix {
  const void* data;
  cudaDataType_t type;
  int64_t stride;
  bool transposed;

  double at(int64_t row, int64_t column) const {
    const int64_t i = transposed ? row * stride + column : column * stride + row;
    return type == CUDA_R_32F ? static_cast<const float*>(data)[i]
                              : static_cast<float>(static_cast<const bfloat16*>(data)[i]);
  }
};

inline void store(void* c, cudaDataType_t type, int64_t i, double value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(c)[i] = static_cast<float>(value);
  } else {
    static_cast<bfloat16*>(c)[i] = static_cast<float>(value);
  }
}

// c = alpha a b + beta c + bias; bias [m] of the type of c, or null.
inline void multiply(const Matrix& a, const Matrix& b, int64_t m, int64_t n, int64_t k, float alpha,
                     float beta, void* c, cudaDataType_t c_type, int64_t ldc,
                     const void* bias = nullptr) {
  const Matrix before{c, c_type, ldc, false};
  for (int64_t column = 0; column < n; ++column) {
    for (int64_t row = 0; row < m; ++row) {
      double total = 0.0;
      for (int64_t i = 0; i < k; ++i) total += a.at(row, i) * b.at(i, column);
      // With beta 0 cuBLAS does not read c, which may hold NaN.
      const double kept = beta == 0.0f ? 0.0 : beta * before.at(row, column);
      const double added = bias ? Matrix{bias, c_type, m, false}.at(row, 0) : 0.0;
      store(c, c_type, column * ldc + row, alpha * total + kept + added);
    }
  }
}

}  // namespace simt
