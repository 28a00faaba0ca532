#pragma once

// For .cu files: 16-byte copies from global to shared memory that go on while the thread computes
// (cp.async, sm_80). A thread's copies are committed in groups; what a wait promises holds for the
// thread's own copies alone, so a barrier follows it.

#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::cuda {

// Starts to copy 16 bytes, both addresses aligned to that; zeros unless `is_here`.
__device__ inline void async_copy_16(void* shared, const void* global, bool is_here) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global),
               "r"(is_here ? 16 : 0)
               : "memory");
}

__device__ inline void commit_async_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Until at most kPending of the thread's newest groups are under way.
template <int kPending>
__device__ void wait_for_async_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

}  // namespace switchyard::cuda
