#pragma once

#include <cstdint>
#include <vector>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Rounds rows of projected keys to the levels that their codes stand for (HashProjection), as
// hash_encode does, and returns the keys' lengths. In host memory; the same for any number of
// threads.
//   x       [rows, columns] f32
//   planes  bits of a key per column
//   levels  [rows, columns] f32, may be x itself
std::vector<float> round_to_levels(ConstTensorView x, int64_t planes, TensorView levels);

}  // namespace switchyard
