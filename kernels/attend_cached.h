#pragma once

#include "kernels/memory.h"
#include "kernels/tensor.h"

namespace switchyard::cpu {

// What decode_attention and gather_attention share on the CPU: the attention of one query per head,
// softmax(scale q k^T) v, to some rows of a cache.
//   q                 [batch, heads, head_dim]
//   k_cache, v_cache  [batch, kv_heads, max_len, head_dim]   dtype of q
//   positions         [batch, kv_heads, max_selected] i32: the rows; empty: 0, 1, 2, ...
//   counts            [batch] i32: how many of them
//   out               [batch, heads * head_dim]   dtype of q
void attend_cached(Workspace& workspace, ConstTensorView q, ConstTensorView k_cache,
                   ConstTensorView v_cache, ConstTensorView positions, ConstTensorView counts,
                   float scale, TensorView out);

}  // namespace switchyard::cpu
