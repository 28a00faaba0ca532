#pragma once

#include "kernels/linear/matmul.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// c = op(a) op(b) + bias for every row.
//   op(a) [m, k], op(b) [k, n]   the same dtype, f32 or bf16
//   bias  [n] f32; on CUDA rounded to the dtype of c, and added before c is rounded
//   c     [m, n]                 the dtype of a and b
using MatmulWithBias = void(Stream&, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                            Transpose transpose_b, ConstTensorView bias, TensorView c);

MatmulWithBias matmul_with_bias;

namespace cpu {
MatmulWithBias matmul_with_bias;
}
namespace cuda {
MatmulWithBias matmul_with_bias;
}

}  // namespace switchyard
