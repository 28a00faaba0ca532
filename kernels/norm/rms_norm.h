#pragma once

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Residual add and RMSNorm in one pass (Zhang and Sennrich 2019, eq. 4):
//   sum[t] = x[t] + delta[t];  y[t] = sum[t] * rstd[t] * weight,
//   rstd[t] = 1 / sqrt(mean(sum[t]^2) + eps)
//   x, delta, sum, y  [tokens, hidden], one dtype; delta may be empty: then sum is not written
//                     (and may be empty) and x itself is normalised. sum may be x or delta.
//   weight            [hidden] f32
//   rstd              [tokens] f32, kept for the backward pass
using RmsNormForward = void(Stream&, ConstTensorView x, ConstTensorView delta,
                            ConstTensorView weight, float eps, TensorView sum, TensorView y,
                            TensorView rstd);

//   dy       [tokens, hidden]
//   x        [tokens, hidden]  the normalised input (`sum` of the forward pass)
//   dx       [tokens, hidden]  += : it already holds the gradient that bypasses the norm
//   dweight  [hidden] f32      +=
using RmsNormBackward = void(Stream&, Workspace&, ConstTensorView dy, ConstTensorView x,
                             ConstTensorView weight, ConstTensorView rstd, TensorView dx,
                             TensorView dweight);

RmsNormForward rms_norm_forward;
RmsNormBackward rms_norm_backward;

namespace cpu {
RmsNormForward rms_norm_forward;
RmsNormBackward rms_norm_backward;
}  // namespace cpu
namespace cuda {
RmsNormForward rms_norm_forward;
RmsNormBackward rms_norm_backward;
}  // namespace cuda

}  // namespace switchyard
