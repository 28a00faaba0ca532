#pragma once

// Launch sizes that the host computes, for bodies and for planning. Nothing here needs CUDA.

#include <cstdint>

namespace switchyard::cuda {

constexpr int kWarpSize = 32;
// For kernels whose blocks work on several rows at a time: a row belongs to blockDim.x threads, a
// power of two up to this value; a block works on blockDim.y rows.
constexpr int kMaxRowThreads = 512;

// How many blocks of `block_size` threads cover n elements, with `per_thread` elements per thread.
inline unsigned int num_blocks(int64_t n, int64_t block_size, int64_t per_thread = 1) {
  const int64_t per_block = block_size * per_thread;
  return static_cast<unsigned int>((n + per_block - 1) / per_block);
}

// Whether all addresses allow 16-byte accesses. Callers also check the row width; for other rows
// they launch the same kernel with one element at a time.
template <class... Pointers>
bool allow_vectors(const Pointers*... addresses) {
  return ((reinterpret_cast<uintptr_t>(addresses) % 16 == 0) && ...);
}

}  // namespace switchyard::cuda
