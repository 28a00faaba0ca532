#pragma once

#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/first_position.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// The codes of the queries that share a key/value head: one of signs for each, or four bit planes
// of their sum. See HashProjection.
enum class QueryCodes { signs, planes };
SWITCHYARD_ENUM_NAMES(QueryCodes, signs, planes)

inline constexpr int64_t kQueryPlanes = 4;

// Their number, and the sum of their weights, 1 for signs and 2^p for plane p.
inline int64_t num_query_codes(QueryCodes codes, int64_t group) {
  return codes == QueryCodes::planes ? kQueryPlanes : group;
}
inline int64_t weight_of_query_codes(QueryCodes codes, int64_t group) {
  return codes == QueryCodes::planes ? (1 << kQueryPlanes) - 1 : group;
}

// How the keys of one layer are hashed, and its queries.
//
// Signs (HATA, arXiv 2506.02572, algorithm 2), where `queries` and `thresholds` are empty: bit j of
// a query or key x is 1 where column j of x W is positive. Queries of one group share the
// projection of their key/value head.
//
// Bit planes, where both are given: keys have one bit per column of x = k W - t, and a group of
// queries has four of y = (sum over the group of q) W', after rounding to y_j = step / 2 (2 u_j -
// 15) with step = max |y| / 8 and u_j from 0 to 15. Plane p holds bit p of all u_j. Then
//   sum over j of y_j sign(x_j) = step / 2 (15 bits - 2 sum over p of 2^p popcount(plane_p xor x)),
// an estimate of the sum of q.k up to the length of x (queries finer than keys: RaBitQ, Gao and
// Long 2024, arXiv 2405.12497).
struct HashProjection {
  ConstTensorView keys;        // W [kv_heads, head_dim, bits] f32, bits a multiple of 32
  ConstTensorView queries;     // W', the same shape
  ConstTensorView thresholds;  // t [kv_heads, bits] f32

  int64_t bits() const { return keys.dim(2); }
  QueryCodes query_codes() const { return queries ? QueryCodes::planes : QueryCodes::signs; }
};

// Codes of queries and keys; in decoding one call encodes the new queries and their key. Bit j of
// word c is column 32 c + j.
//   q        [batch, heads, q_len, head_dim]; empty: only keys are encoded
//   k        [batch, kv_heads, seq_len, head_dim]   dtype of q; empty: only queries are encoded
//   q_codes  [batch, kv_heads num_query_codes, q_len, bits / 32] i32
//   codes    [batch, kv_heads, max_len, bits / 32] i32: positions [first_position,
//            first_position + seq_len) are written, others are not changed
//   norms    [batch, kv_heads, max_len] f32: the lengths |k| with signs, |k W - t| with planes, at
//            the same positions as `codes`; empty: not computed
using HashEncode = void(Stream&, ConstTensorView q, ConstTensorView k, const HashProjection&,
                        const FirstPosition& first_position, TensorView q_codes, TensorView codes,
                        TensorView norms);

HashEncode hash_encode;

namespace cpu {
HashEncode hash_encode;
}  // namespace cpu
namespace cuda {
HashEncode hash_encode;
}  // namespace cuda

}  // namespace switchyard
