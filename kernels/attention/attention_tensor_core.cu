// FlashAttention-2 (Dao 2023, algorithms 1 and 2) on tensor cores, for bf16.
//
// A block of four warps works on one tile of rows, 16 per warp, so that sums and maxima along a row
// need only four lanes of one warp. The tiles of the other operand stream through two buffers in
// shared memory: one is read while the next one is copied. Scores exist only as fragments in
// registers: fragments of an accumulator, rounded, have the layout of a left operand
// (kernels/cuda/mma.h).

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/async_copy.h"
#include "kernels/cuda/attention_problem.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/shared_tile.h"

namespace switchyard::cuda {
namespace {

// Reductions over the four lanes that share a row.
__device__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ float row_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// The running softmax of a lane's two rows, in units of the scaled score times log2(e).
struct RunningSoftmax {
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {};  // this lane's part

  // Turns scores into weights relative to the new maximum, and rescales `sums` to it.
  template <int kScores, int kSums>
  __device__ void update(FragmentC (&scores)[kScores], FragmentC (&sums)[kSums]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = largest[half];
#pragma unroll
      for (FragmentC& s : scores) {
        best = fmaxf(best, fmaxf(s.value[2 * half], s.value[2 * half + 1]));
      }
      best = row_max(best);
      // Rows that have not seen a key yet keep sums of zero.
      const float shift = best == -INFINITY ? 0.0f : best;
      const float shrink = exp2f(largest[half] - shift);
      total[half] *= shrink;
      largest[half] = best;
#pragma unroll
      for (FragmentC& s : scores) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s.value[i] = exp2f(s.value[i] - shift);
          total[half] += s.value[i];
        }
      }
#pragma unroll
      for (FragmentC& s : sums) {
        s.value[2 * half] *= shrink;
        s.value[2 * half + 1] *= shrink;
      }
    }
  }
};

template <int kDim>
constexpr size_t kForwardShared = tile_bytes<kDim>(kRows + 4 * kForwardKeys);

// Block (query tile, head, sequence).
template <int kDim>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<kDim>)
    flash_forward_kernel(AttentionProblem p, const bfloat16* q, const bfloat16* k,
                         const bfloat16* v, bfloat16* out, float* lse) {
  auto* shared = dynamic_shared<bfloat16>();
  const SharedTile<kDim> q_tile{shared};
  const auto k_tile = [&](int64_t i) {
    return SharedTile<kDim>{shared + (kRows + i % 2 * kForwardKeys) * kDim};
  };
  const auto v_tile = [&](int64_t i) {
    return SharedTile<kDim>{shared + (kRows + (2 + i % 2) * kForwardKeys) * kDim};
  };
  const int64_t b = blockIdx.z, head = blockIdx.y, kv_head = p.kv_head_of(head);
  // Long rows come first, because they take the most time.
  const int64_t first = (gridDim.x - 1 - blockIdx.x) * int64_t{kRows};
  const int64_t last = min(p.seq_len, first + kRows) - 1;
  const bfloat16* keys = k + p.kv_row(b, kv_head, 0);
  const bfloat16* values = v + p.kv_row(b, kv_head, 0);
  const int64_t first_tile = p.first_key(b, first) / kForwardKeys;
  const int64_t end_tile = last / kForwardKeys + 1;
  const auto start_tiles = [&](int64_t i) {
    if (i < end_tile) {
      start_rows<kForwardKeys, kThreads>(keys, kDim, i * kForwardKeys, p.seq_len, k_tile(i));
      start_rows<kForwardKeys, kThreads>(values, kDim, i * kForwardKeys, p.seq_len, v_tile(i));
    }
    commit_async_copies();
  };
  start_rows<kRows, kThreads>(q + p.q_row(b, head, 0), kDim, first, p.seq_len, q_tile);
  commit_async_copies();
  start_tiles(first_tile);

  const int warp_row = static_cast<int>(threadIdx.x) / kWarpSize * kRowsPerWarp;
  const int64_t warp_first = first + warp_row;
  const float factor = p.scale * kLog2E;
  FragmentA queries[kDim / 16];
  wait_for_async_copies<1>();
  __syncthreads();  // the q tile is complete
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) queries[c] = load_a_of_rows(q_tile, warp_row, c * 16);

  RunningSoftmax softmax;
  FragmentC sums[kDim / 8];
  for (int64_t i = first_tile; i < end_tile; ++i) {
    start_tiles(i + 1);
    wait_for_async_copies<1>();
    __syncthreads();  // tile i is complete
    const int64_t key = i * kForwardKeys;
    FragmentC scores[kForwardKeys / 8];
    multiply_by_rows<kForwardKeys>([&](int c) { return queries[c]; }, k_tile(i), scores);
    const bool has_unseen =
        key + kForwardKeys - 1 > warp_first || (p.document_start && p.first_key(b, last) > key);
    scale_and_mask<kForwardKeys>(p, b, warp_first, key, factor, has_unseen, scores);
    softmax.update(scores, sums);
    add_products<kForwardKeys>(scores, v_tile(i), sums);
    __syncthreads();  // tile i has been read: tile i + 2 may overwrite it
  }

  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = row_sum(softmax.total[half]);
    inverse[half] = 1.0f / total;
    const int64_t row = warp_first + lane / 4 + half * 8;
    if (lane % 4 == 0 && row < p.seq_len) {
      lse[p.lse_row(b, head) + row] = (softmax.largest[half] + log2f(total)) / kLog2E;
    }
  }
  store_rows<kDim>(sums, inverse, warp_first, p.seq_len, p.heads * kDim,
                   out + p.out_row(b, head, 0));
}

}  // namespace

bool fits_tensor_cores(const AttentionProblem& problem, DType dtype,
                       std::initializer_list<const void*> operands) {
  return dtype == DType::bf16 && (problem.head_dim == 64 || problem.head_dim == 128) &&
         std::ranges::all_of(operands, [](const void* address) {
           return reinterpret_cast<uintptr_t>(address) % 16 == 0;
         });
}

void tensor_core_attention_forward(Stream& stream, const AttentionProblem& problem, int64_t batch,
                                   const bfloat16* q, const bfloat16* k, const bfloat16* v,
                                   bfloat16* out, float* lse) {
  dispatch_tensor_head_dim(problem.head_dim, [&]<int kDim>() {
    require_shared_memory(stream, kForwardShared<kDim>,
                          fmt::format("attention in bf16 with heads of {} elements", kDim));
    launch(flash_forward_kernel<kDim>, tiles_of(problem, problem.heads, batch), kThreads,
           kForwardShared<kDim>, stream, problem, q, k, v, out, lse);
  });
}

}  // namespace switchyard::cuda
