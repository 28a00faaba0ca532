#pragma once

// For the bodies of matrix products. Nothing here needs CUDA.

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/sizes.h"
#include "kernels/linear/matmul.h"

namespace switchyard::cuda {

// c [m, n] = op(a) op(b) in row-major terms. cuBLAS's matrices are column-major: each is the
// transpose of ours, so cuBLAS computes c^T = op(b)^T op(a)^T. Sums are f32; f32 products do not
// use TF32 unless the environment asks cuBLAS for it.
struct Product {
  int64_t m, n, k;
  Transpose transpose_a, transpose_b;
  const void *a, *b;
  int64_t a_stride, b_stride;  // elements from row to row, as stored
  void* c;                     // rows without gaps
};

// cuBLAS's grouped kernels read 16 bytes at a time.
inline bool is_aligned(const Product& p, size_t element_bytes, size_t c_element_bytes) {
  const auto stride_fits = [](int64_t stride, size_t bytes) {
    return static_cast<size_t>(stride) * bytes % 16 == 0;
  };
  return allow_vectors(p.a, p.b, p.c) && stride_fits(p.a_stride, element_bytes) &&
         stride_fits(p.b_stride, element_bytes) && stride_fits(p.n, c_element_bytes);
}

}  // namespace switchyard::cuda
