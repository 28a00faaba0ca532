#pragma once

// For mma.h and its emulation: the elements that a lane holds of the operands of a product.

#include <cstdint>

namespace switchyard::cuda {

struct FragmentA {
  // (group, 2 pair), (group + 8, 2 pair), (group, 2 pair + 8), (group + 8, 2 pair + 8)
  uint32_t pair[4];
};
struct FragmentB {
  uint32_t pair[2];  // (2 pair, group), (2 pair + 8, group)
};
struct FragmentC {
  float value[4] = {};  // (group, 2 pair), (group, 2 pair + 1), the same of row group + 8
};

}  // namespace switchyard::cuda
