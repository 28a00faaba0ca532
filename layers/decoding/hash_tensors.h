#pragma once

#include "kernels/decode/hash_encode.h"

namespace switchyard {

// The tensors of a HashProjection, of one layer's heads or of a single head.
struct HashTensors {
  Tensor keys;             // [kv_heads, head_dim, columns] f32; empty: the layer stays dense
  Tensor queries;          // the same shape; empty: codes are signs
  Tensor thresholds;       // [kv_heads, columns] f32, with `queries`
  int64_t key_planes = 1;  // bits of a key per column

  explicit operator bool() const { return static_cast<bool>(keys); }
  HashProjection projection() const {
    if (!queries) return {.keys = keys, .queries = {}, .thresholds = {}};
    return {.keys = keys, .queries = queries, .thresholds = thresholds, .key_planes = key_planes};
  }
};

// Each of the tensors, and its name in files. Codes of signs have the first alone.
struct NamedHashTensor {
  const char* name;
  Tensor HashTensors::*tensor;
};
inline constexpr NamedHashTensor kHashTensors[] = {{"hash_weight", &HashTensors::keys},
                                                   {"query_weight", &HashTensors::queries},
                                                   {"threshold", &HashTensors::thresholds}};

}  // namespace switchyard
