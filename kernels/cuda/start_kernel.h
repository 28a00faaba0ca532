#pragma once

// For launch.h: what CUDA and its emulation on the host (tests/simt) do differently.

#include <cuda_runtime.h>

#include <cstddef>
#include <tuple>

#include "kernels/cuda/support.h"
#include "kernels/runtime/device.h"

namespace switchyard::cuda {

// What a kernel may use of shared memory without asking first.
constexpr size_t kOrdinarySharedBytes = 48 * 1024;

// Puts a kernel into the stream and checks that it was accepted. The grid is not empty.
template <class... Params>
void start_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                  Stream& stream, std::tuple<Params...>& values) {
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
}

// The block's dynamic shared memory, aligned to 128 bytes.
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char switchyard_shared_bytes[];
  return reinterpret_cast<T*>(switchyard_shared_bytes);
}

}  // namespace switchyard::cuda
