#include "kernels/linear/block_product.h"

#include "kernels/cpu/onednn_matmul.h"

namespace switchyard {

void multiply_block(int64_t m, int64_t n, int64_t k, MatrixOperand a, MatrixOperand b,
                    Accumulate accumulate, float* c) {
  compute_block({.m = m,
                 .n = n,
                 .k = k,
                 .dtype = DType::f32,
                 .a = a,
                 .b = b,
                 .c = c,
                 .c_stride = n,
                 .c_dtype = DType::f32,
                 .accumulate = accumulate});
}

}  // namespace switchyard
