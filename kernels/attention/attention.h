#pragma once

#include "kernels/runtime/first_position.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Causal attention, softmax(scale q k^T) v, computed in blocks of queries and keys with a running
// maximum (FlashAttention-2, Dao 2023, algorithms 1 and 2): no seq x seq matrix in memory.
// Query head h reads key/value head h / (heads / kv_heads).
//   q               [batch, heads, seq_len, head_dim]
//   k, v            [batch, kv_heads, seq_len, head_dim]   dtype of q
//   document_start  [batch, seq_len] i32: the first position of the token's own document; earlier
//                   keys are masked. Non-decreasing along seq_len, at most the position itself.
//                   Empty: the mask is causal only
//   out             [batch * seq_len, heads * head_dim]    dtype of q
//   lse             [batch, heads, seq_len] f32: log of the sum of exp(scaled score)
using AttentionForward = void(Stream&, Workspace&, ConstTensorView q, ConstTensorView k,
                              ConstTensorView v, ConstTensorView document_start, float scale,
                              TensorView out, TensorView lse);

//   dout        as out
//   dq, dk, dv  as q, k, v; overwritten
using AttentionBackward = void(Stream&, Workspace&, ConstTensorView dout, ConstTensorView q,
                               ConstTensorView k, ConstTensorView v, ConstTensorView out,
                               ConstTensorView lse, ConstTensorView document_start, float scale,
                               TensorView dq, TensorView dk, TensorView dv);

// cache[b, h, first_position + t] = x[b, h, t]; other positions are not changed.
//   x      [batch, kv_heads, seq_len, head_dim]
//   cache  [batch, kv_heads, max_len, head_dim]   dtype of x
using AppendToCache = void(Stream&, ConstTensorView x, const FirstPosition& first_position,
                           TensorView cache);

// One new query per sequence against a cache of keys and values.
//   q                 [batch, heads, head_dim]
//   k_cache, v_cache  [batch, kv_heads, max_len, head_dim]   dtype of q
//   lengths           [batch] i32: how many cached positions are valid, at least 1
//   out               [batch, heads * head_dim]
using DecodeAttention = void(Stream&, Workspace&, ConstTensorView q, ConstTensorView k_cache,
                             ConstTensorView v_cache, ConstTensorView lengths, float scale,
                             TensorView out);

AttentionForward attention_forward;
AttentionBackward attention_backward;
AppendToCache append_to_cache;
DecodeAttention decode_attention;

namespace cpu {
AttentionForward attention_forward;
AttentionBackward attention_backward;
AppendToCache append_to_cache;
DecodeAttention decode_attention;
}  // namespace cpu
namespace cuda {
AttentionForward attention_forward;
AttentionBackward attention_backward;
AppendToCache append_to_cache;
DecodeAttention decode_attention;
}  // namespace cuda

}  // namespace switchyard
