#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// MagicPIG (arXiv 2410.16179) samples keys by locality-sensitive hashing: a query head attends to
// a key that shares its bucket in at least two hash tables, and divides the key's weight by the
// probability of that. A table has 16 bits of a code: table t is half t % 2 (0: the low one) of
// word t / 2.

struct LshTables {
  int64_t bits = 0, tables = 0;  // bits of a bucket, at most 16, and the number of tables
  int64_t begin = 0, end = 0;    // positions of the keys that are in the tables
};

// What a query head adds to the scaled product of each key:
//   log_weights[b, g, p] = 0                      outside the tables: attended to exactly
//                          -log(u + 1e-4)         shares at least two buckets
//                          -infinity              shares fewer
// for p < lengths[b]; later positions are not changed. u = lsh_probability(1 - theta / pi, ...)
// and theta is the angle between the query and the key less `mean`. The summand 1e-4, which bounds
// the weight of an improbable key, is that of the published code.
//   q            [batch, heads, head_dim]
//   q_codes      [batch, heads, words] i32, words = ceil(tables / 2)
//   k_cache      [batch, kv_heads, max_len, head_dim]   dtype of q
//   mean         [batch, kv_heads, head_dim] f32
//   codes        [batch, kv_heads, max_len, words] i32, of the keys less `mean`
//   lengths      [batch] i32: cached positions, at least 1
//   log_weights  [batch, heads, max_len] f32
using LshLogWeights = void(Stream&, ConstTensorView q, ConstTensorView q_codes,
                           ConstTensorView k_cache, ConstTensorView mean, ConstTensorView codes,
                           ConstTensorView lengths, const LshTables& tables,
                           TensorView log_weights);

// Lists, for each (sequence, key/value head), the positions below lengths[b] that at least one
// query head of the group gives a weight above -infinity, in rising order. Shorter lists of a
// sequence are filled up with position 0, at the weight -infinity.
//   log_weights  [batch, heads, max_len] f32
//   lengths      [batch] i32, at most max_selected
//   indices      [batch, kv_heads, max_selected] i32
//   counts       [batch] i32: the length of the sequence's longest list
//   selected     [batch, heads, max_selected] f32: the log weights of the listed positions
using ListWeighted = void(Stream&, ConstTensorView log_weights, ConstTensorView lengths,
                          TensorView indices, TensorView counts, TensorView selected);

LshLogWeights lsh_log_weights;
ListWeighted list_weighted;

namespace cpu {
LshLogWeights lsh_log_weights;
ListWeighted list_weighted;
}  // namespace cpu
namespace cuda {
LshLogWeights lsh_log_weights;
ListWeighted list_weighted;
}  // namespace cuda

}  // namespace switchyard
