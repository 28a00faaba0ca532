#pragma once

#include <cstdint>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// The position of the first of some new tokens.
struct FirstPosition {
  FirstPosition(int64_t position) : on_host(position) {}  // NOLINT: most callers have a number
  FirstPosition(int64_t position, ConstTensorView same_on_device)
      : on_host(position), on_device(same_on_device) {}

  int64_t on_host;
  // [1 or more] i32, all of them the position; may be empty. CUDA kernels read it if it is given:
  // work that was recorded (kernels/runtime/graph.h) then finds the position of its replay.
  ConstTensorView on_device = {};
};

}  // namespace switchyard
