#pragma once

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// RMSNorm over all heads of a token's queries, or of its keys (OLMoE, arXiv 2409.02060), in two
// steps: heads may be split over ranks, and between the steps the caller adds up the ranks' sums.
// x, y and their gradients are [batch, heads, seq_len, head_dim], f32 or bf16, of this rank's
// heads; token b * seq_len + t has a sum. `width` is the number of channels of all ranks' heads.

// sums = sum over this rank's heads and channels of a * b * weight
//   weight  [heads * head_dim] f32; empty: all 1
//   sums    [batch * seq_len] f32
using ProjectionSums = void(Stream&, ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                            TensorView sums);

// y = x * rstd * weight, rstd = 1 / sqrt(squares / width + eps)
//   squares  [batch * seq_len] f32: the sums of x * x
using ProjectionNormForward = void(Stream&, ConstTensorView x, ConstTensorView squares,
                                   ConstTensorView weight, int64_t width, float eps, TensorView y);

//   dots     [batch * seq_len] f32: the sums of dy * x * weight
//   dx       overwritten
//   dweight  [heads * head_dim] f32  +=
using ProjectionNormBackward = void(Stream&, Workspace&, ConstTensorView dy, ConstTensorView x,
                                    ConstTensorView squares, ConstTensorView dots,
                                    ConstTensorView weight, int64_t width, float eps, TensorView dx,
                                    TensorView dweight);

ProjectionSums projection_sums;
ProjectionNormForward projection_norm_forward;
ProjectionNormBackward projection_norm_backward;

namespace cpu {
ProjectionSums projection_sums;
ProjectionNormForward projection_norm_forward;
ProjectionNormBackward projection_norm_backward;
}  // namespace cpu
namespace cuda {
ProjectionSums projection_sums;
ProjectionNormForward projection_norm_forward;
ProjectionNormBackward projection_norm_backward;
}  // namespace cuda

}  // namespace switchyard
