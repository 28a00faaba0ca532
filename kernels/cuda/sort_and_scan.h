#pragma once

// For .cu files: a stable sort by integer keys and running sums, by CUB.

#include <algorithm>
#include <bit>
#include <cstdint>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cuda {

// The scratch of one call of CUB: the planned bytes, or those that CUB asks for if they are more.
inline TensorView take_library_scratch(Workspace& workspace, size_t planned, size_t asked) {
  return workspace.take({static_cast<int64_t>(std::max(planned, asked))}, DType::u8);
}

// Sorts (key, value) pairs; pairs of equal keys keep their order.
//   keys, values                [n] i32 or i64, and i32; keys are in [0, max_key], and the sort's
//                               passes cover only the bits of max_key
//   sorted_keys, sorted_values  [n], of the same dtypes
template <class Key>
void stable_sort_pairs(Stream& stream, Workspace& workspace, const Key* keys, const int32_t* values,
                       int64_t n, int64_t max_key, Key* sorted_keys, int32_t* sorted_values) {
  const int bits = std::max(static_cast<int>(std::bit_width(static_cast<uint64_t>(max_key))), 1);
  const auto sort = [&](void* scratch, size_t& num_bytes) {
    check_cuda(cub::DeviceRadixSort::SortPairs(scratch, num_bytes, keys, sorted_keys, values,
                                               sorted_values, n, 0, bits, native_stream(stream)),
               "cub::DeviceRadixSort::SortPairs");
  };
  size_t num_bytes = 0;
  sort(nullptr, num_bytes);
  WorkspaceScope scope(workspace);
  const size_t planned = sort_scratch_bytes(n, max_key, sizeof(Key));
  sort(take_library_scratch(workspace, planned, num_bytes).raw(), num_bytes);
}

// sums[i] = values[0] + ... + values[i]. `sums` and `values` may be the same memory.
inline void running_sums(Stream& stream, Workspace& workspace, const int32_t* values, int64_t n,
                         int32_t* sums) {
  const auto scan = [&](void* scratch, size_t& num_bytes) {
    check_cuda(
        cub::DeviceScan::InclusiveSum(scratch, num_bytes, values, sums, n, native_stream(stream)),
        "cub::DeviceScan::InclusiveSum");
  };
  size_t num_bytes = 0;
  scan(nullptr, num_bytes);
  WorkspaceScope scope(workspace);
  scan(take_library_scratch(workspace, scan_scratch_bytes(n), num_bytes).raw(), num_bytes);
}

}  // namespace switchyard::cuda
