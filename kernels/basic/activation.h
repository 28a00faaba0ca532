#pragma once

#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// gelu is the tanh form (Hendrycks and Gimpel 2016, section 2), as GPT-2 and GPT-3 use it;
// relu2 is the square of relu (So et al. 2021). swiglu (Shazeer 2020) is the only gated function:
// its input has two halves, out = silu(gate) * up.
enum class Activation { swiglu, gelu, relu, relu2, silu };
SWITCHYARD_ENUM_NAMES(Activation, swiglu, gelu, relu, relu2, silu)

constexpr bool is_gated(Activation activation) { return activation == Activation::swiglu; }

//   in         [rows, ffn]; of a gated function [rows, 2 * ffn], with the gate half first
//   row_scale  [rows] f32, multiplies each row of out (the router weight); may be empty
//   out        [rows, ffn]
using ActivationForward = void(Stream&, Activation, ConstTensorView in, ConstTensorView row_scale,
                               TensorView out);

//   dout        [rows, ffn]
//   din         as in
//   drow_scale  [rows] f32, = <dout, activation(in)>; empty if row_scale is empty
using ActivationBackward = void(Stream&, Activation, ConstTensorView dout, ConstTensorView in,
                                ConstTensorView row_scale, TensorView din, TensorView drow_scale);

ActivationForward activation_forward;
ActivationBackward activation_backward;

namespace cpu {
ActivationForward activation_forward;
ActivationBackward activation_backward;
}  // namespace cpu
namespace cuda {
ActivationForward activation_forward;
ActivationBackward activation_backward;
}  // namespace cuda

}  // namespace switchyard
