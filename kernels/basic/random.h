#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Counter-based random numbers (Philox4x32-10, Salmon et al. 2011): a value depends on the key and
// the global index of its element only, so every layout draws the same values.
struct RandomKey {
  uint64_t seed = 0;
  uint64_t stream = 0;  // the id of the tensor or purpose; see stream_id
};

// FNV-1a: for fingerprints, and to split texts by their content.
uint64_t hash64(std::string_view text);
// The stream of the tensor or purpose with this name.
uint64_t stream_id(std::string_view name);

// A uniform double in (0, 1), and 64 random bits, for element `index`.
double random_uniform(RandomKey key, uint64_t index);
uint64_t random_bits(RandomKey key, uint64_t index);

// Fills a box of a larger tensor with normal values of mean 0 (Box-Muller).
//   global_shape  the whole tensor, at most 3 dimensions
//   offset        the position of the box's first element in the tensor
//   y             the box, f32
using InitNormal = void(Stream&, RandomKey key, float std, const Shape& global_shape,
                        const Shape& offset, TensorView y);

InitNormal init_normal;

namespace cpu {
InitNormal init_normal;
}
namespace cuda {
InitNormal init_normal;
}

}  // namespace switchyard
