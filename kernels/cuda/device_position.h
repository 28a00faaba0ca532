#pragma once

// For .cu files: the position of new tokens, as kernels read it.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/runtime/first_position.h"

namespace switchyard::cuda {

struct DevicePosition {
  explicit DevicePosition(const FirstPosition& position)
      : on_host(position.on_host),
        on_device(position.on_device ? position.on_device.data<int32_t>() : nullptr) {}

  int64_t on_host;
  const int32_t* on_device;  // may be null

  __device__ int64_t value() const { return on_device ? *on_device : on_host; }
};

}  // namespace switchyard::cuda
