#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// cos and sin of position * theta^(-2 i / head_dim) (Su et al. 2021, eq. 15), for
// i < head_dim / 2, computed in double.
struct RopeTable {
  Tensor cos;  // [seq_len, head_dim / 2] f32
  Tensor sin;  // [seq_len, head_dim / 2] f32
};

// Throws unless head_dim is even.
RopeTable make_rope_table(Stream& stream, int64_t seq_len, int64_t head_dim, double theta);

// Splits the fused projection by head, and rotates q and k. Halves are rotated, as Hugging Face
// does: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the two halves of head_dim.
// Token t of sequence b has the position first_position + t.
//   qkv       [batch * seq_len, (heads + 2 * kv_heads) * head_dim], q heads first, then k, then v
//   cos, sin  [positions, head_dim / 2] f32; empty: no rotation
//   q         [batch, heads, seq_len, head_dim]
//   k, v      [batch, kv_heads, seq_len, head_dim]
using SplitQkvForward = void(Stream&, ConstTensorView qkv, ConstTensorView cos, ConstTensorView sin,
                             int64_t first_position, TensorView q, TensorView k, TensorView v);

// The transpose of SplitQkv: rotates dq and dk back and joins dq, dk and dv.
using SplitQkvBackward = void(Stream&, ConstTensorView dq, ConstTensorView dk, ConstTensorView dv,
                              ConstTensorView cos, ConstTensorView sin, TensorView dqkv);

// Rotates in place; `inverse` rotates by the negative angle (the backward pass). For models that
// normalise q and k between the split and the rotation.
//   x  [batch, heads, seq_len, head_dim]
using RopeInPlace = void(Stream&, ConstTensorView cos, ConstTensorView sin, int64_t first_position,
                         bool inverse, TensorView x);

SplitQkvForward split_qkv_forward;
SplitQkvBackward split_qkv_backward;
RopeInPlace rope_in_place;

namespace cpu {
SplitQkvForward split_qkv_forward;
SplitQkvBackward split_qkv_backward;
RopeInPlace rope_in_place;
}  // namespace cpu
namespace cuda {
SplitQkvForward split_qkv_forward;
SplitQkvBackward split_qkv_backward;
RopeInPlace rope_in_place;
}  // namespace cuda

}  // namespace switchyard
