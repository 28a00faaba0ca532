#pragma once

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Residual add and LayerNorm in one pass (Ba et al. 2016):
//   sum[t] = x[t] + delta[t];  y[t] = (sum[t] - mean[t]) * rstd[t] * weight + bias
//   x, delta, sum, y  [tokens, hidden], one dtype; delta may be empty: then sum is not written
//                     (and may be empty) and x itself is normalised. sum may be x or delta.
//   weight, bias      [hidden] f32
//   mean, rstd        [tokens] f32, kept for the backward pass
using LayerNormForward = void(Stream&, ConstTensorView x, ConstTensorView delta,
                              ConstTensorView weight, ConstTensorView bias, float eps,
                              TensorView sum, TensorView y, TensorView mean, TensorView rstd);

//   dx              [tokens, hidden]  += : it already holds the gradient that bypasses the norm
//   dweight, dbias  [hidden] f32      +=
using LayerNormBackward = void(Stream&, Workspace&, ConstTensorView dy, ConstTensorView x,
                               ConstTensorView weight, ConstTensorView mean, ConstTensorView rstd,
                               TensorView dx, TensorView dweight, TensorView dbias);

LayerNormForward layer_norm_forward;
LayerNormBackward layer_norm_backward;

namespace cpu {
LayerNormForward layer_norm_forward;
LayerNormBackward layer_norm_backward;
}  // namespace cpu
namespace cuda {
LayerNormForward layer_norm_forward;
LayerNormBackward layer_norm_backward;
}  // namespace cuda

}  // namespace switchyard
