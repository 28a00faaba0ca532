#pragma once

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// How much attention keys receive, for methods that keep the keys which received most: SnapKV
// (arXiv 2404.14469) and H2O (arXiv 2306.14048). Query heads that share a key/value head are
// summed.

// The attention of a prompt's queries from position first_query on, under the causal mask:
//   received[b, h, p] = sum of exp(scale <q[b, g, t], k[b, h, p]> - lse[b, g, t])
//                       over the query heads g that share h and positions t >= max(first_query, p)
// for p < seq_len; later positions are not changed.
//   q         [batch, heads, seq_len, head_dim]
//   k         [batch, kv_heads, seq_len, head_dim]   dtype of q
//   lse       [batch, heads, seq_len] f32, as attention_forward writes it
//   received  [batch, kv_heads, max_len] f32, max_len at least seq_len
using ReceivedAttention = void(Stream&, Workspace&, ConstTensorView q, ConstTensorView k,
                               ConstTensorView lse, int64_t first_query, float scale,
                               TensorView received);

// A step of decoding with eviction: the listed keys stay and receive the attention of a new query,
//   scores[b, h, p] += sum over g of softmax(scale <q[b, g], k_cache[b, h, p]>)
// for listed p, the softmax being over these; all other p < lengths[b] are evicted, their score is
// -infinity. Later positions are not changed.
//   q        [batch, heads, head_dim]
//   k_cache  [batch, kv_heads, max_len, head_dim]   dtype of q
//   indices  [batch, kv_heads, max_selected] i32: positions below lengths[b], each at most once
//   counts   [batch] i32: how many entries of `indices` are used, at least 1
//   lengths  [batch] i32: cached positions
//   scores   [batch, kv_heads, max_len] f32
using EvictAndScore = void(Stream&, Workspace&, ConstTensorView q, ConstTensorView k_cache,
                           ConstTensorView indices, ConstTensorView counts, ConstTensorView lengths,
                           float scale, TensorView scores);

ReceivedAttention received_attention;
EvictAndScore evict_and_score;

namespace cpu {
ReceivedAttention received_attention;
EvictAndScore evict_and_score;
}  // namespace cpu
namespace cuda {
ReceivedAttention received_attention;
EvictAndScore evict_and_score;
}  // namespace cuda

// The scratch of evict_and_score on every device: weights and new scores of the listed keys.
//   [batch * kv_heads, 2, max_selected] f32
TensorView evict_and_score_scratch(Workspace&, ConstTensorView indices);

}  // namespace switchyard
