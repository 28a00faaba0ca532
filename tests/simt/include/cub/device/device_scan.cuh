#pragma once

// Stands in for CUB's header: running sums on the host, in the stream's order.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <numeric>

namespace cub {

struct DeviceScan {
  template <class Value>
  static cudaError_t InclusiveSum(void* scratch, size_t& num_bytes, const Value* values,
                                  Value* sums, int64_t n, cudaStream_t stream) {
    if (scratch == nullptr) {
      num_bytes = 1;
      return cudaSuccess;
    }
    simt::enqueue(stream, [=] {
      const simt::DeviceMemoryAccess access;
      std::inclusive_scan(values, values + n, sums);
    });
    return cudaSuccess;
  }
};

}  // namespace cub
