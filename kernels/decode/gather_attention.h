#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Attention of one new query per sequence to some of its cached keys, softmax(scale q k^T + w) v
// over an index list; the rows are read in place, without a copy. Query heads that share a
// key/value head share its list; w may give each of them weights of its own.
//   q                 [batch, heads, head_dim]
//   k_cache, v_cache  [batch, kv_heads, max_len, head_dim]   dtype of q
//   indices           [batch, kv_heads, max_selected] i32: positions in the cache, in any order
//   counts            [batch] i32: how many entries of `indices` are used, at least 1
//   log_weights       w, [batch, heads, max_selected] f32: the head leaves out keys at -infinity,
//                     but not all; empty: zero
//   out               [batch, heads * head_dim]   dtype of q
using GatherAttention = void(Stream&, Workspace&, ConstTensorView q, ConstTensorView k_cache,
                             ConstTensorView v_cache, ConstTensorView indices,
                             ConstTensorView counts, ConstTensorView log_weights, float scale,
                             TensorView out);

GatherAttention gather_attention;

namespace cpu {
GatherAttention gather_attention;
}  // namespace cpu
namespace cuda {
GatherAttention gather_attention;
}  // namespace cuda

}  // namespace switchyard
