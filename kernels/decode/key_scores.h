#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Products of cached keys with a new query, for methods that rank keys by them: products over all
// channels (exact top-k), or over a few leading channels of rotated vectors (Loki, arXiv
// 2406.02542).
//   scores[b, h, p] = sum over the query heads g that share h of <q[b, g], keys[b, h, p]>
// for p < lengths[b]; later positions are not changed.
//   q        [batch, heads, width]
//   keys     [batch, kv_heads, max_len, width]   dtype of q
//   lengths  [batch] i32: cached positions, at least 1
//   scores   [batch, kv_heads, max_len] f32
using KeyScores = void(Stream&, ConstTensorView q, ConstTensorView keys, ConstTensorView lengths,
                       TensorView scores);

KeyScores key_scores;

namespace cpu {
KeyScores key_scores;
}  // namespace cpu
namespace cuda {
KeyScores key_scores;
}  // namespace cuda

}  // namespace switchyard
