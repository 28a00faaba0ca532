// The backward pass of attention on tensor cores; see attention_tensor_core.cu.
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

template <int kDim>
constexpr size_t kBackwardShared = tile_bytes<kDim>(2 * kRows + 4 * kBackwardColumns) +
                                   sizeof(float) * 4 * kBackwardColumns;

// probs = exp2(scores - lse); dprobs becomes probs * (dprobs - delta), the gradient of the scaled
// scores (algorithm 2, lines 11 to 14). lse(i, n) and delta(i, n) belong to value i of fragment n.
template <int kCount, class Lse, class Delta>
__device__ void score_gradients(const Lse& lse, const Delta& delta, FragmentC (&scores)[kCount / 8],
                                FragmentC (&dprobs)[kCount / 8]) {
#pragma unroll
  for (int n = 0; n < kCount / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float prob = exp2f(scores[n].value[i] - lse(i, n));
      scores[n].value[i] = prob;
      dprobs[n].value[i] = prob * (dprobs[n].value[i] - delta(i, n));
    }
  }
}

// Block (query tile, head, sequence) loops over tiles of keys.
template <int kDim>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<kDim>)
    flash_backward_q_kernel(AttentionProblem p, const bfloat16* dout, const bfloat16* q,
                            const bfloat16* k, const bfloat16* v, const float* lse,
                            const float* delta, bfloat16* dq) {
  auto* shared = dynamic_shared<bfloat16>();
  const SharedTile<kDim> q_tile{shared}, dout_tile{shared + kRows * kDim};
  const auto k_tile = [&](int64_t i) {
    return SharedTile<kDim>{shared + (2 * kRows + i % 2 * kBackwardColumns) * kDim};
  };
  const auto v_tile = [&](int64_t i) {
    return SharedTile<kDim>{shared + (2 * kRows + (2 + i % 2) * kBackwardColumns) * kDim};
  };
  const int64_t b = blockIdx.z, head = blockIdx.y, kv_head = p.kv_head_of(head);
  const int64_t first = (gridDim.x - 1 - blockIdx.x) * int64_t{kRows};
  const int64_t last = min(p.seq_len, first + kRows) - 1;
  const int64_t first_tile = p.first_key(b, first) / kBackwardColumns;
  const int64_t end_tile = last / kBackwardColumns + 1;
  const auto start_tiles = [&](int64_t i) {
    if (i < end_tile) {
      const int64_t key = i * kBackwardColumns, row = p.kv_row(b, kv_head, 0);
      start_rows<kBackwardColumns, kThreads>(k + row, kDim, key, p.seq_len, k_tile(i));
      start_rows<kBackwardColumns, kThreads>(v + row, kDim, key, p.seq_len, v_tile(i));
    }
    commit_async_copies();
  };
  start_rows<kRows, kThreads>(q + p.q_row(b, head, 0), kDim, first, p.seq_len, q_tile);
  start_rows<kRows, kThreads>(dout + p.out_row(b, head, 0), p.heads * kDim, first, p.seq_len,
                              dout_tile);
  start_tiles(first_tile);

  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarpSize * kRowsPerWarp;
  const int64_t warp_first = first + warp_row;
  float row_lse[2], row_delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = warp_first + lane / 4 + half * 8;
    // Rows beyond the end get probabilities of zero.
    row_lse[half] = row < p.seq_len ? lse[p.lse_row(b, head) + row] * kLog2E : INFINITY;
    row_delta[half] = row < p.seq_len ? delta[p.lse_row(b, head) + row] : 0.0f;
  }
  FragmentC sums[kDim / 8];
  for (int64_t i = first_tile; i < end_tile; ++i) {
    start_tiles(i + 1);
    wait_for_async_copies<1>();
    __syncthreads();  // tile i is complete; in the first round q and dout are, too
    const int64_t key = i * kBackwardColumns;
    FragmentC scores[kBackwardColumns / 8], dprobs[kBackwardColumns / 8];
    multiply_by_rows<kBackwardColumns>(
        [&](int c) { return load_a_of_rows(q_tile, warp_row, c * 16); }, k_tile(i), scores);
    multiply_by_rows<kBackwardColumns>(
        [&](int c) { return load_a_of_rows(dout_tile, warp_row, c * 16); }, v_tile(i), dprobs);
    const bool has_unseen =
        key + kBackwardColumns - 1 > warp_first || (p.document_start && p.first_key(b, last) > key);
    scale_and_mask<kBackwardColumns>(p, b, warp_first, key, p.scale * kLog2E, has_unseen, scores);
    score_gradients<kBackwardColumns>([&](int at, int) { return row_lse[at / 2]; },
                                      [&](int at, int) { return row_delta[at / 2]; }, scores,
                                      dprobs);
    add_products<kBackwardColumns>(dprobs, k_tile(i), sums);
    __syncthreads();  // tile i has been read
  }
  store_rows<kDim>(sums, {p.scale, p.scale}, warp_first, p.seq_len, kDim, dq + p.q_row(b, head, 0));
}

// Does the same as scale_and_mask for scores whose rows are keys and whose columns are queries.
template <int kCount>
__device__ void scale_and_mask_transposed(const AttentionProblem& p, int64_t b, int64_t key,
                                          int64_t query, float factor, bool has_unseen,
                                          FragmentC (&scores)[kCount / 8]) {
#pragma unroll
  for (FragmentC& s : scores) {
#pragma unroll
    for (float& value : s.value) value *= factor;
  }
  if (!has_unseen) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int n = 0; n < kCount / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = key + lane / 4 + i / 2 * 8;
      const int64_t column = query + n * 8 + lane % 4 * 2 + i % 2;
      if (column >= p.seq_len || !p.sees(b, column, row)) scores[n].value[i] = -INFINITY;
    }
  }
}

// The tiles of queries that see keys [first, last], head after head of the group.
struct QueryTiles {
  int64_t first_head;
  int first_tile, per_head, count;

  // Queries that precede the keys, or whose document begins after them, do not see them. The starts
  // of documents do not decrease, so the tiles form one range.
  __device__ QueryTiles(const AttentionProblem& p, int64_t b, int64_t kv_head, int64_t first,
                        int64_t last)
      : first_head(kv_head * (p.heads / p.kv_heads)),
        first_tile(static_cast<int>(first / kBackwardColumns)) {
    int end = static_cast<int>((p.seq_len + kBackwardColumns - 1) / kBackwardColumns);
    if (p.document_start) {
      int tile = first_tile;
      while (tile < end && p.first_key(b, tile * int64_t{kBackwardColumns}) <= last) ++tile;
      end = tile;
    }
    per_head = end - first_tile;
    count = static_cast<int>(p.heads / p.kv_heads) * per_head;
  }

  __device__ int64_t head(int i) const { return first_head + i / per_head; }
  __device__ int64_t query(int i) const {
    return (first_tile + i % per_head) * int64_t{kBackwardColumns};
  }
};

// Loads the statistics that the softmax's gradient needs of the queries from `query` on into one of
// two buffers: log-sum-exp, to base 2, and delta. Queries beyond the sequence's end get
// probabilities of zero.
//   lse, delta            [batch, heads, seq_len]
//   lse_tile, delta_tile  [2, kBackwardColumns]
__device__ void load_statistics(const AttentionProblem& p, const float* lse, const float* delta,
                                int64_t b, int64_t head, int64_t query, int buffer, float* lse_tile,
                                float* delta_tile) {
  if (threadIdx.x < kBackwardColumns) {
    const int64_t row = query + threadIdx.x;
    const auto at = buffer * kBackwardColumns + threadIdx.x;
    const bool is_here = row < p.seq_len;
    lse_tile[at] = is_here ? lse[p.lse_row(b, head) + row] * kLog2E : INFINITY;
    delta_tile[at] = is_here ? delta[p.lse_row(b, head) + row] : 0.0f;
  }
}

// Block (key tile, key/value head, sequence) loops over tiles of the queries of all heads of the
// group, in order.
template <int kDim>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<kDim>)
    flash_backward_kv_kernel(AttentionProblem p, const bfloat16* dout, const bfloat16* q,
                             const bfloat16* k, const bfloat16* v, const float* lse,
                             const float* delta, bfloat16* dk, bfloat16* dv) {
  auto* shared = dynamic_shared<bfloat16>();
  const SharedTile<kDim> k_tile{shared}, v_tile{shared + kRows * kDim};
  const auto q_tile = [&](int64_t i) {
    return SharedTile<kDim>{shared + (2 * kRows + i % 2 * kBackwardColumns) * kDim};
  };
  const auto dout_tile = [&](int64_t i) {
    return SharedTile<kDim>{shared + (2 * kRows + (2 + i % 2) * kBackwardColumns) * kDim};
  };
  // [2, kBackwardColumns] each
  auto* lse_tile = reinterpret_cast<float*>(shared + (2 * kRows + 4 * kBackwardColumns) * kDim);
  auto* delta_tile = lse_tile + 2 * kBackwardColumns;
  const int64_t b = blockIdx.z, kv_head = blockIdx.y;
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int64_t last = min(p.seq_len, first + kRows) - 1;
  const QueryTiles tiles(p, b, kv_head, first, last);
  const auto start_tiles = [&](int i) {
    if (i < tiles.count) {
      const int64_t head = tiles.head(i), query = tiles.query(i);
      start_rows<kBackwardColumns, kThreads>(q + p.q_row(b, head, 0), kDim, query, p.seq_len,
                                             q_tile(i));
      start_rows<kBackwardColumns, kThreads>(dout + p.out_row(b, head, 0), p.heads * kDim, query,
                                             p.seq_len, dout_tile(i));
      load_statistics(p, lse, delta, b, head, query, i % 2, lse_tile, delta_tile);
    }
    commit_async_copies();
  };
  start_rows<kRows, kThreads>(k + p.kv_row(b, kv_head, 0), kDim, first, p.seq_len, k_tile);
  start_rows<kRows, kThreads>(v + p.kv_row(b, kv_head, 0), kDim, first, p.seq_len, v_tile);
  start_tiles(0);

  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarpSize * kRowsPerWarp;
  const int64_t warp_first = first + warp_row;
  FragmentC dk_sums[kDim / 8], dv_sums[kDim / 8];
  for (int i = 0; i < tiles.count; ++i) {
    start_tiles(i + 1);
    wait_for_async_copies<1>();
    __syncthreads();  // tile i is complete; in the first round k and v are, too
    const int64_t query = tiles.query(i);
    FragmentC scores[kBackwardColumns / 8], dprobs[kBackwardColumns / 8];
    multiply_by_rows<kBackwardColumns>(
        [&](int c) { return load_a_of_rows(k_tile, warp_row, c * 16); }, q_tile(i), scores);
    multiply_by_rows<kBackwardColumns>(
        [&](int c) { return load_a_of_rows(v_tile, warp_row, c * 16); }, dout_tile(i), dprobs);
    const bool has_unseen =
        query < warp_first + kRowsPerWarp - 1 || query + kBackwardColumns > p.seq_len ||
        (p.document_start && p.first_key(b, query + kBackwardColumns - 1) > warp_first);
    scale_and_mask_transposed<kBackwardColumns>(p, b, warp_first, query, p.scale * kLog2E,
                                                has_unseen, scores);
    const auto column = [&](int at, int n) {
      return i % 2 * kBackwardColumns + n * 8 + lane % 4 * 2 + at % 2;
    };
    score_gradients<kBackwardColumns>([&](int at, int n) { return lse_tile[column(at, n)]; },
                                      [&](int at, int n) { return delta_tile[column(at, n)]; },
                                      scores, dprobs);
    add_products<kBackwardColumns>(scores, dout_tile(i), dv_sums);
    add_products<kBackwardColumns>(dprobs, q_tile(i), dk_sums);
    __syncthreads();  // tile i has been read
  }
  const int64_t row = p.kv_row(b, kv_head, 0);
  store_rows<kDim>(dk_sums, {p.scale, p.scale}, warp_first, p.seq_len, kDim, dk + row);
  store_rows<kDim>(dv_sums, {1.0f, 1.0f}, warp_first, p.seq_len, kDim, dv + row);
}

}  // namespace

void tensor_core_attention_backward(Stream& stream, const AttentionProblem& problem, int64_t batch,
                                    const bfloat16* dout, const bfloat16* q, const bfloat16* k,
                                    const bfloat16* v, const float* lse, const float* delta,
                                    bfloat16* dq, bfloat16* dk, bfloat16* dv) {
  dispatch_tensor_head_dim(problem.head_dim, [&]<int kDim>() {
    require_shared_memory(
        stream, kBackwardShared<kDim>,
        fmt::format("the gradient of attention in bf16 with heads of {} elements", kDim));
    launch(flash_backward_kv_kernel<kDim>, tiles_of(problem, problem.kv_heads, batch), kThreads,
           kBackwardShared<kDim>, stream, problem, dout, q, k, v, lse, delta, dk, dv);
    launch(flash_backward_q_kernel<kDim>, tiles_of(problem, problem.heads, batch), kThreads,
           kBackwardShared<kDim>, stream, problem, dout, q, k, v, lse, delta, dq);
  });
}

}  // namespace switchyard::cuda
