#pragma once

// For .cu files: 16-byte copies from global to shared memory that run while the thread computes
// (cp.async, sm_80). A thread commits its copies in groups. A wait covers only the thread's own
// copies, so a barrier must follow it.

#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::cuda {

// Starts to copy 16 bytes between addresses aligned to 16; writes zeros unless `is_here`.
__device__ inline void async_copy_16(void* shared, const void* global, bool is_here) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global),
               "r"(is_here ? 16 : 0)
               : "memory");
}

__device__ inline void commit_async_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most kPending of the thread's newest groups are unfinished.
template <int kPending>
__device__ void wait_for_async_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

}  // namespace switchyard::cuda
