#pragma once

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// The body that decode_attention and gather_attention share: the attention of one query per head,
// softmax(scale q k^T + log_weights) v, to some rows of a cache.
//   q                 [batch, heads, head_dim]
//   k_cache, v_cache  [batch, kv_heads, max_len, head_dim]   dtype of q
//   positions         [batch, kv_heads, max_selected] i32: the rows; empty: 0, 1, 2, ...
//   counts            [batch] i32: how many rows, at least 1
//   log_weights       [batch, heads, max_selected] f32, with `positions` only; empty: zero
//   out               [batch, heads * head_dim]   dtype of q
using AttendCached = void(Stream&, Workspace&, ConstTensorView q, ConstTensorView k_cache,
                          ConstTensorView v_cache, ConstTensorView positions,
                          ConstTensorView counts, ConstTensorView log_weights, float scale,
                          TensorView out);

namespace cpu {
AttendCached attend_cached;
// Takes what the body takes from the workspace for the largest possible number of keys.
void count_attend_cached(Workspace&, ConstTensorView q, ConstTensorView k_cache,
                         ConstTensorView positions);
}  // namespace cpu
namespace cuda {
AttendCached attend_cached;
}  // namespace cuda

}  // namespace switchyard
