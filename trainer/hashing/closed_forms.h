#pragma once

#include "kernels/basic/random.h"
#include "layers/decoding/hash_tensors.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard {

// Projections with bit planes (HashProjection) that are computed from a head's queries and keys,
// not learned. The mean m of the keys changes no ranking, since q.k and q.(k - m) differ by a
// constant per query, but sign bits are wasted on it.
//   centred   W = W' = R, t = m W. R is a random tight frame, R R' = columns / head_dim I: random
//             rotations side by side, or one frame where head_dim does not divide the columns
//   balanced  W' = A R, W = A^-1 R, t = m W. A = M^1/2, M the geometric mean of two matrices: the
//             inverse second moment of the groups' sums of queries, and that of the centred keys.
//             Then A q and A^-1 (k - m) have the same products as q and k - m, and the same second
//             moment, so that rotations and signs treat both alike
//   itq       balanced, and each rotation in R (or the frame) turned by iterative quantization
//             (Gong et al. 2011) to bring the keys' directions near to what the levels of their
//             codes stand for; with one bit of each column, these are the corners of a cube
// Codes have num_key_planes planes. With fewer columns than head_dim, R has the directions of
// greatest second moment alone.
enum class ClosedForm { centred, balanced, itq };

// One head's projections, [1, ...]. A function of its arguments alone.
HashTensors closed_form(ClosedForm form, const HeadQueryKeys& head, RandomKey key, int64_t bits);

}  // namespace switchyard
