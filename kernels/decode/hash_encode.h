#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Codes of queries and keys (HATA, arXiv 2506.02572, algorithm 2): bit j of x is 1 where column j
// of x W is positive. Bit j of word c is column 32 c + j. Queries of one group share the projection
// of their key/value head, and in decoding one call encodes them and the new key.
//   q        [batch, heads, q_len, head_dim]; empty: only keys are encoded
//   k        [batch, kv_heads, seq_len, head_dim]   dtype of q; empty: only queries are encoded
//   weight   [kv_heads, head_dim, bits] f32, bits a multiple of 32
//   q_codes  [batch, heads, q_len, bits / 32] i32
//   codes    [batch, kv_heads, max_len, bits / 32] i32: positions [first_position,
//            first_position + seq_len) are written, others are not changed
//   norms    [batch, kv_heads, max_len] f32: the lengths |k|, at the same positions as `codes`;
//            empty: not computed
using HashEncode = void(Stream&, ConstTensorView q, ConstTensorView k, ConstTensorView weight,
                        int64_t first_position, TensorView q_codes, TensorView codes,
                        TensorView norms);

HashEncode hash_encode;

namespace cpu {
HashEncode hash_encode;
}  // namespace cpu
namespace cuda {
HashEncode hash_encode;
}  // namespace cuda

}  // namespace switchyard
