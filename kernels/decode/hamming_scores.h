#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Distances of cached key codes to those of a new query, summed over the query heads that share the
// key/value head (HATA, arXiv 2506.02572, algorithm 3):
//   distances[b, h, p] = sum over g of popcount(q_codes[b, g] xor codes[b, h, p])
// for p < lengths[b]; later positions are not changed.
//   q_codes    [batch, heads, words] i32
//   codes      [batch, kv_heads, max_len, words] i32
//   lengths    [batch] i32: cached positions, at least 1
//   distances  [batch, kv_heads, max_len] u16; group * bits must fit
using HammingScores = void(Stream&, ConstTensorView q_codes, ConstTensorView codes,
                           ConstTensorView lengths, TensorView distances);

// The scores by which the published code ranks keys if it keeps their lengths:
//   scores[b, h, p] = (group - 2 distances[b, h, p] / bits) norms[b, h, p]
// for p < lengths[b]; later positions are not changed. A score approximates the sum over the group
// of cos(q_g, k) |k|.
//   norms   [batch, kv_heads, max_len] f32
//   scores  [batch, kv_heads, max_len] f32
using KeyNormScores = void(Stream&, ConstTensorView distances, ConstTensorView norms,
                           ConstTensorView lengths, int64_t group, int64_t bits, TensorView scores);

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
