#pragma once

#include "kernels/basic/random.h"
#include "trainer/config/hash_config.h"
#include "trainer/hashing/hash_weights.h"

namespace switchyard {

// One head's projection, a function of the key alone.
//   orthogonal  bits <= head_dim: W'W = I, a uniformly distributed set of orthonormal columns.
//               bits > head_dim: WW' = I, a tight frame. W'W has rank head_dim, so none is nearer
//               to I than ||W'W - I||_F = sqrt(bits - head_dim). The mean squared length of the
//               columns is head_dim / bits
//   gaussian    independent elements N(0, 1), as in the published code
//   result      [head_dim, bits] f32
Tensor random_projection(HashInit init, RandomKey key, int64_t head_dim, int bits);
// The key of the initial projection of a layer's head.
RandomKey projection_key(uint64_t seed, int layer, int kv_head);

// Random projections for every layer from `dense_layers` on: the untrained baseline, and the start
// of training.
HashWeights random_hash_weights(uint64_t seed, HashInit init, const ModelConfig& model, int bits,
                                int dense_layers);

}  // namespace switchyard
