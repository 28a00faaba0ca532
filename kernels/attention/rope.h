#pragma once

#include <cstdint>
#include <vector>

#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/first_position.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// How the wavelengths of a model are stretched when its context grows.
enum class RopeScalingType { none, linear, llama3, yarn };
SWITCHYARD_ENUM_NAMES(RopeScalingType, none, linear, llama3, yarn)

struct RopeScaling {
  RopeScalingType type = RopeScalingType::none;
  double factor = 1.0;            // of the context's length
  int64_t original_seq_len = 0;   // the context before; llama3 and yarn
  double low_freq_factor = 1.0;   // llama3: pairs of fewer turns in that context are stretched
  double high_freq_factor = 4.0;  // llama3: pairs of more turns are left alone
  double beta_fast = 32.0;        // yarn: as high_freq_factor
  double beta_slow = 1.0;         // yarn: as low_freq_factor
  double attention_factor = 0.0;  // yarn: of cos and sin; 0: 0.1 ln(factor) + 1
};

struct RopeConfig {
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // the first channels of a head, which turn; 0: all
  double theta = 10000.0;
  RopeScaling scaling = {};
};

// The angles per position, in double, of the rotary_dim / 2 pairs that turn: theta^(-2 i /
// rotary_dim) (Su et al. 2021, eq. 15), divided by the scaling:
//   linear  all by factor (Chen et al. 2023, arXiv 2306.15595)
//   llama3  the slow pairs by factor, with a linear passage between the two limits (Llama 3.1)
//   yarn    the same by pairs' numbers (Peng et al. 2023, arXiv 2309.00071, section 3.2)
// Throws unless head_dim is even and rotary_dim is even and at most head_dim.
std::vector<double> rope_frequencies(const RopeConfig& config);
// The factor of cos and sin: of the attention's logits its square (YaRN, section 3.4).
double rope_attention_factor(const RopeScaling& scaling);

// cos and sin of position * frequency, times the attention factor.
struct RopeTable {
  Tensor cos;  // [seq_len, rotary_dim / 2] f32
  Tensor sin;  // [seq_len, rotary_dim / 2] f32
};

RopeTable make_rope_table(Stream& stream, int64_t seq_len, const RopeConfig& config);

// Splits the fused projection by head, and rotates q and k. Halves are rotated, as Hugging Face
// does: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the two halves of a head's first
// rotary_dim channels, of which the tables hold a column per pair. The others are copied.
// Token t of sequence b has the position first_position + t.
//   qkv       [batch * seq_len, (heads + 2 * kv_heads) * head_dim], q heads first, then k, then v
//   cos, sin  [positions, rotary_dim / 2] f32; empty: no rotation
//   q         [batch, heads, seq_len, head_dim]
//   k, v      [batch, kv_heads, seq_len, head_dim]
using SplitQkvForward = void(Stream&, ConstTensorView qkv, ConstTensorView cos, ConstTensorView sin,
                             const FirstPosition& first_position, TensorView q, TensorView k,
                             TensorView v);

// The transpose of SplitQkv: rotates dq and dk back and joins dq, dk and dv.
using SplitQkvBackward = void(Stream&, ConstTensorView dq, ConstTensorView dk, ConstTensorView dv,
                              ConstTensorView cos, ConstTensorView sin, TensorView dqkv);

// Rotates in place; `inverse` rotates by the negative angle (the backward pass). For models that
// normalise q and k between the split and the rotation.
//   x  [batch, heads, seq_len, head_dim]
using RopeInPlace = void(Stream&, ConstTensorView cos, ConstTensorView sin,
                         const FirstPosition& first_position, bool inverse, TensorView x);

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
