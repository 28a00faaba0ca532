#pragma once

// Stands in for CUB's header: a stable sort on the host, in the stream's order.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/runtime/check.h"

namespace cub {

struct DeviceRadixSort {
  // Sorts by bits [begin_bit, end_bit) of the keys; begin_bit is 0. If scratch is null, only sets
  // num_bytes to the size that scratch must have.
  template <class Key, class Value>
  static cudaError_t SortPairs(void* scratch, size_t& num_bytes, const Key* keys, Key* sorted_keys,
                               const Value* values, Value* sorted_values, int64_t n,
                               int /*begin_bit*/, int end_bit, cudaStream_t stream) {
    if (scratch == nullptr) {
      num_bytes = 1;
      return cudaSuccess;
    }
    simt::enqueue(stream, [=] {
      const simt::DeviceMemoryAccess access;
      // CUB would sort keys with more bits wrongly.
      for (int64_t i = 0; i < n; ++i) {
        switchyard::require(keys[i] >= 0 && int64_t{keys[i]} >> end_bit == 0,
                            "key {} has more than {} bits", keys[i], end_bit);
      }
      std::vector<int64_t> order(static_cast<size_t>(n));
      std::iota(order.begin(), order.end(), int64_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
      for (int64_t i = 0; i < n; ++i) {
        sorted_keys[i] = keys[order[static_cast<size_t>(i)]];
        sorted_values[i] = values[order[static_cast<size_t>(i)]];
      }
    });
    return cudaSuccess;
  }
};

}  // namespace cub
