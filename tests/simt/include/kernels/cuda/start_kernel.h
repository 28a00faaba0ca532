#pragma once

// Stands in for kernels/cuda/start_kernel.h: adds the grid to the emulated stream.

#include <cuda_runtime.h>

#include <cstddef>
#include <tuple>

#include "kernels/cuda/support.h"
#include "kernels/runtime/device.h"

namespace switchyard::cuda {

template <class... Params>
void start_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                  Stream& stream, std::tuple<Params...>& values) {
  simt::check_launch(native_stream(stream));
  check_cuda(simt::enter("cudaLaunchKernel"), "cudaLaunchKernel");
  simt::enqueue(native_stream(stream), [=] {
    simt::run_grid(grid, block, shared_bytes, [&] { std::apply(kernel, values); });
  });
}

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(simt::dynamic_shared_memory());
}

}  // namespace switchyard::cuda
