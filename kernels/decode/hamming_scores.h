#pragma once

#include "kernels/decode/hash_encode.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Distances of cached key codes to those of a new query, summed over the codes of the queries that
// share the key/value head, signs (HATA, arXiv 2506.02572, algorithm 3) or planes, and over the
// planes of the keys (HashProjection):
//   distances[b, h, k] = sum over c and p of weight_c 2^p popcount(q_codes[b, c] xor plane p of
//                        codes[b, h, k])
// with weight 1 for signs and 2^c for planes, for k < lengths[b]; later positions are not changed.
//   q_codes    [batch, kv_heads query codes, words] i32
//   codes      [batch, kv_heads, max_len, key planes * words] i32; one plane with signs
//   lengths    [batch] i32: cached positions, at least 1
//   distances  [batch, kv_heads, max_len] u16; the sum of all weights times the columns must fit
using HammingScores = void(Stream&, ConstTensorView q_codes, QueryCodes, ConstTensorView codes,
                           ConstTensorView lengths, TensorView distances);

// Scores that keep the keys' lengths:
//   scores[b, h, k] = (weight - 2 distances[b, h, k] / columns) norms[b, h, k]
// for k < lengths[b]; later positions are not changed. With planes a score is proportional to the
// estimate of sum over the group of q.k; with signs it approximates sum over the group of
// cos(q_g, k) |k|, by which the published code of HATA ranks keys if it keeps their lengths.
//   norms   [batch, kv_heads, max_len] f32
//   weight  weight_of_codes
//   scores  [batch, kv_heads, max_len] f32
using KeyNormScores = void(Stream&, ConstTensorView distances, ConstTensorView norms,
                           ConstTensorView lengths, int64_t weight, int64_t columns,
                           TensorView scores);

HammingScores hamming_scores;
KeyNormScores key_norm_scores;

namespace cpu {
HammingScores hamming_scores;
KeyNormScores key_norm_scores;
}  // namespace cpu
namespace cuda {
HammingScores hamming_scores;
KeyNormScores key_norm_scores;
}  // namespace cuda

}  // namespace switchyard
