#pragma once

// For launch.h: the functions that the emulation on the host (tests/simt) replaces.

#include <cuda_runtime.h>

#include <cstddef>
#include <tuple>

#include "kernels/cuda/support.h"
#include "kernels/runtime/device.h"

namespace switchyard::cuda {

// Bytes of shared memory that a kernel may use without a function attribute.
constexpr size_t kOrdinarySharedBytes = 48 * 1024;

// Launches a kernel in the stream and checks that CUDA accepted it. The grid must not be empty.
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
