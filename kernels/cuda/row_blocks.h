#pragma once

// How the host distributes rows of [rows, width] over the threads and blocks of the norms' kernels;
// for their .cu files and for planning.

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/cuda/sizes.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/cuda_limits.h"

namespace switchyard::cuda {

// Most elements of a row per thread. Narrow rows use fewer: a backward pass also keeps its sums in
// registers, and with more than 16 elements per thread the f32 kernels and those without 16-byte
// accesses run out of them.
constexpr int kRowElements = 32;
static_assert(kRowElements * kMaxRowThreads == cuda_limits::kNormWidth);
// Threads of a block if a row needs fewer.
constexpr int kRowBlockThreads = 256;

// Calls body.operator()<kVec, kSteps>().
template <class T, class Body>
void dispatch_row(int64_t width, bool vectors_allowed, Body&& body) {
  constexpr int kWide = 16 / sizeof(T);
  require(width <= cuda_limits::kNormWidth,
          "hidden is {}: the CUDA kernels normalise rows of at most {}", width,
          cuda_limits::kNormWidth);
  const auto fits = [&](int per_thread) { return width <= per_thread * kMaxRowThreads; };
  if (vectors_allowed && width % kWide == 0) {
    if (width <= kWide * kWarpSize) return body.template operator()<kWide, 1>();
    if (fits(kWide * 4)) return body.template operator()<kWide, 4>();
    return body.template operator()<kWide, kRowElements / kWide>();
  }
  if (width <= kWarpSize) return body.template operator()<1, 1>();
  if (fits(8)) return body.template operator()<1, 8>();
  if (fits(16)) return body.template operator()<1, 16>();
  return body.template operator()<1, kRowElements>();
}

// A block: `x` threads for a row, `y` rows.
struct RowBlock {
  unsigned int x, y;
};

// The block for rows of which each thread holds `steps` pieces of `vec` elements.
inline RowBlock row_block(int64_t width, int vec, int steps) {
  const int per_thread = vec * steps;
  const int64_t needed = std::max<int64_t>((width + per_thread - 1) / per_thread, 1);
  unsigned int threads = std::bit_ceil(static_cast<unsigned int>(needed));
  // A row of one step may use a part of a warp; a row of several steps fills at least one warp.
  if (steps > 1) threads = std::max<unsigned int>(threads, kWarpSize);
  return {threads, std::max(kRowBlockThreads / threads, 1u)};
}

// The number of blocks of a backward kernel. Each block works through many rows, so that few
// partial sums of [width] are written; short rows need more threads to keep the memory busy.
inline unsigned int backward_blocks(int multiprocessors, int64_t rows, RowBlock block, int steps) {
  const int per_processor = steps == 1 ? 8 : 2;
  const int64_t resident = int64_t{per_processor} * multiprocessors;
  return static_cast<unsigned int>(std::min<int64_t>(num_blocks(rows, block.y), resident));
}

}  // namespace switchyard::cuda
