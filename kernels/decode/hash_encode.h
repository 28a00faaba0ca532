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

inline int64_t num_query_codes(QueryCodes codes, int64_t group) {
  return codes == QueryCodes::planes ? kQueryPlanes : group;
}

inline constexpr int64_t kMostKeyPlanes = 4;

// The bit planes of keys whose codes have `bits` bits: as many as leave a column for every
// direction of a head, fill words and have distances that fit u16 (hamming_scores.h), at most
// kMostKeyPlanes. Two bits of one column tell more of a key than the signs of two columns.
int64_t num_key_planes(int64_t bits, int64_t head_dim);

// What a column adds to the distance of a group's queries from a key at most: the product of the
// sums of weights of the queries' codes, 1 for signs and 2^p for plane p, and of the key's planes.
inline int64_t weight_of_codes(QueryCodes codes, int64_t group, int64_t key_planes) {
  const int64_t queries = codes == QueryCodes::planes ? (1 << kQueryPlanes) - 1 : group;
  return queries * ((1 << key_planes) - 1);
}
// Distances are u16 (hamming_scores.h), so codes have no more columns than this.
inline int64_t most_columns(QueryCodes codes, int64_t group, int64_t key_planes) {
  constexpr int64_t kMostDistance = (1 << 16) - 1;
  return kMostDistance / weight_of_codes(codes, group, key_planes);
}

// How the keys of one layer are hashed, and its queries.
//
// Signs (HATA, arXiv 2506.02572, algorithm 2), where `queries` and `thresholds` are empty: bit j of
// a query or key x is 1 where column j of x W is positive. Queries of one group share the
// projection of their key/value head.
//
// Bit planes, where both are given. A key k has x = k W - t, of which column j is rounded to one of
// L = 2^key_planes levels v_j = 2 u_j - (L - 1), with u_j from 0 to L - 1 and
//   u_j = min(max(floor(x_j / step) + L / 2, 0), L - 1)
//   step = key_step(key_planes) |x| / sqrt(columns)
// Plane p of its code holds bit p of all u_j. A group of queries has four planes of
// y = (sum over the group of q) W', after rounding to y_j = step_q / 2 (2 u_j - 15) with
// step_q = max |y| / 8 and u_j from 0 to 15. Then
//   sum over j of y_j v_j = step_q / 2 (15 (L - 1) columns - 2 distance)
//   distance = sum over c, p of 2^(c + p) popcount(plane c of the queries xor plane p of the key)
// times the key's length |x|^2 / (sum over j of x_j v_j) is an estimate of y.x, which ranks keys as
// the sum over the group of q.k does if W and W' keep products (ClosedForm): the length times v has
// the product with x that x has with itself. (One bit per column,
// the length and finer queries: RaBitQ, Gao and Long 2024, arXiv 2405.12497; more bits per column:
// its extension, Gao et al. 2024, arXiv 2409.09913.)
struct HashProjection {
  ConstTensorView keys;        // W [kv_heads, head_dim, columns] f32, columns a multiple of 32
  ConstTensorView queries;     // W', the same shape
  ConstTensorView thresholds;  // t [kv_heads, columns] f32
  int64_t key_planes = 1;      // 1 with signs

  int64_t columns() const { return keys.dim(2); }
  int64_t bits() const { return columns() * key_planes; }
  QueryCodes query_codes() const { return queries ? QueryCodes::planes : QueryCodes::signs; }
};

// The width of a level of values of variance 1, with the least mean square error for 2^planes
// levels and normal values (Max 1960, Quantizing for minimum distortion, table II). For one plane,
// whose levels are signs, any width will do.
constexpr float key_step(int64_t planes) {
  constexpr float kSteps[] = {1.596f, 0.9957f, 0.5860f, 0.3352f};
  return kSteps[planes - 1];
}

// Codes of queries and keys; in decoding one call encodes the new queries and their key. Bit j of
// word c of a plane is column 32 c + j; the planes of a key lie one after the other.
//   q        [batch, heads, q_len, head_dim]; empty: only keys are encoded
//   k        [batch, kv_heads, seq_len, head_dim]   dtype of q; empty: only queries are encoded
//   q_codes  [batch, kv_heads num_query_codes, q_len, columns / 32] i32
//   codes    [batch, kv_heads, max_len, bits / 32] i32: positions [first_position,
//            first_position + seq_len) are written, others are not changed
//   norms    [batch, kv_heads, max_len] f32: |k| with signs, the lengths of HashProjection with
//            planes, at the same positions as `codes`; empty: not computed
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
