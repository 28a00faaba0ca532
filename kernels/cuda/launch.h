#pragma once

// For .cu files only: launches kernels.

#include <cuda_runtime.h>

#include <cstddef>
#include <tuple>
#include <utility>

#include "kernels/cuda/sizes.h"
#include "kernels/cuda/start_kernel.h"
#include "kernels/cuda/support.h"
#include "kernels/runtime/device.h"

namespace switchyard::cuda {

// Runs kernel<<<grid, block, shared_bytes, stream>>>(args...) and checks the launch; an empty grid
// launches nothing. Kernels reach their dynamic shared memory through dynamic_shared().
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream& stream,
            Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  std::tuple<Params...> values(std::forward<Args>(args)...);
  start_kernel(kernel, grid, block, shared_bytes, stream, values);
}

}  // namespace switchyard::cuda
