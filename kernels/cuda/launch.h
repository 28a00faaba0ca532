#pragma once

// For .cu files alone: how kernels are launched, and the pieces of the device language that differ
// between CUDA and its emulation on the host (tests/simt).

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>

#include "kernels/cuda/sizes.h"
#include "kernels/cuda/support.h"
#include "kernels/runtime/device.h"

namespace switchyard::cuda {

// What a kernel may use of shared memory without asking first.
constexpr size_t kOrdinarySharedBytes = 48 * 1024;

// kernel<<<grid, block, shared_bytes, stream>>>(args...), with the launch checked; an empty grid
// runs nothing. Kernels reach their dynamic shared memory through dynamic_shared().
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream& stream,
            Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  std::tuple<Params...> values(std::forward<Args>(args)...);
#ifdef SWITCHYARD_EMULATED_CUDA
  simt::check_launch(native_stream(stream));
  simt::enqueue(native_stream(stream), [=] {
    simt::run_grid(grid, block, shared_bytes, [&] { std::apply(kernel, values); });
  });
#else
  if (shared_bytes > kOrdinarySharedBytes) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "cudaFuncSetAttribute");
  }
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value..., nullptr};
        check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers,
                                    shared_bytes, native_stream(stream)),
                   "cudaLaunchKernel");
      },
      values);
#endif
}

// The block's dynamic shared memory, aligned to 128 bytes.
template <class T>
__device__ T* dynamic_shared() {
#ifdef SWITCHYARD_EMULATED_CUDA
  return static_cast<T*>(simt::dynamic_shared_memory());
#else
  extern __shared__ __align__(128) unsigned char switchyard_shared_bytes[];
  return reinterpret_cast<T*>(switchyard_shared_bytes);
#endif
}

}  // namespace switchyard::cuda
