#pragma once

#include <cstdint>
#include <span>

#include "kernels/runtime/tensor.h"

namespace switchyard {

enum class Transpose { no, yes };
enum class Accumulate { no, yes };  // yes: adds to the values of the output

// c = op(a) op(b), or c += op(a) op(b)
//   op(a) [m, k], op(b) [k, n]   the same dtype, f32 or bf16
//   c     [m, n]                 f32 or the dtype of a and b; sums are f32
using Matmul = void(Stream&, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                    Transpose transpose_b, Accumulate accumulate, TensorView c);

// Applies one linear map per expert to rows that are grouped by expert: rows
// [row_offsets[e], row_offsets[e + 1]) of x belong to expert e. Groups may be empty or ragged.
//   x            [rows, in]
//   weight       [experts, out, in]    dtype of x
//   row_offsets  experts + 1 entries, on the host
//   y            [rows, out]           y = x weight[e]^T
using GroupedLinearForward = void(Stream&, ConstTensorView x, ConstTensorView weight,
                                  std::span<const int64_t> row_offsets, TensorView y);
//   dx [rows, in] = dy weight[e]
using GroupedLinearBackwardInput = void(Stream&, ConstTensorView dy, ConstTensorView weight,
                                        std::span<const int64_t> row_offsets, TensorView dx);
//   dweight [experts, out, in] f32 = or += dy^T x over the rows of each expert
using GroupedLinearBackwardWeight = void(Stream&, ConstTensorView dy, ConstTensorView x,
                                         std::span<const int64_t> row_offsets,
                                         Accumulate accumulate, TensorView dweight);

Matmul matmul;
GroupedLinearForward grouped_linear_forward;
GroupedLinearBackwardInput grouped_linear_backward_input;
GroupedLinearBackwardWeight grouped_linear_backward_weight;

namespace cpu {
Matmul matmul;
GroupedLinearForward grouped_linear_forward;
GroupedLinearBackwardInput grouped_linear_backward_input;
GroupedLinearBackwardWeight grouped_linear_backward_weight;
}  // namespace cpu
namespace cuda {
Matmul matmul;
GroupedLinearForward grouped_linear_forward;
GroupedLinearBackwardInput grouped_linear_backward_input;
GroupedLinearBackwardWeight grouped_linear_backward_weight;
}  // namespace cuda

}  // namespace switchyard
