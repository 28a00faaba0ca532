// FlashAttention-2 (Dao 2023, algorithms 1 and 2) on tensor cores, for bf16.
//
// A block of four warps works on one tile of rows, 16 to a warp, so that everything that is summed
// or compared along a row stays within four lanes of one warp. The tiles on the other side of the
// product stream through two buffers in shared memory: one is read while the next one arrives.
// Scores exist as fragments in registers alone: those of an accumulator, rounded, are those of a
// left operand (kernels/cuda/mma.h).

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/attention_problem.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/shared_tile.h"

namespace switchyard::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRowsPerWarp = 16;
constexpr int kRows = kWarps * kRowsPerWarp;  // of the block's own tile
constexpr int kForwardKeys = 64;              // of a tile that streams by, forward
constexpr int kBackwardColumns = 32;          // and backward: keys for dq, queries for dk and dv
// As many as registers and shared memory allow; the compiler must not pass that by a register.
template <int kDim>
constexpr int kBlocksPerMultiprocessor = kDim == 64 ? 3 : 2;
constexpr float kLog2E = 1.4426950408889634f;

// ---- Products
// ------------------------------------------------------------------------------------

// scores [16, kCount] = a tile^T, where a(c) gives the left operand's columns 16 c to 16 c + 15.
template <int kCount, int kDim, class A>
__device__ void multiply_by_rows(const A& a, SharedTile<kDim> tile,
                                 FragmentC (&scores)[kCount / 8]) {
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) {
    const FragmentA left = a(c);
#pragma unroll
    for (int n = 0; n < kCount / 16; ++n) {
      FragmentB right[2];
      load_b_of_rows(tile, n * 16, c * 16, right);
      multiply_add(left, right[0], scores[2 * n]);
      multiply_add(left, right[1], scores[2 * n + 1]);
    }
  }
}

// sums [16, kDim] += weights tile, where weights [16, kCount] are rounded.
template <int kCount, int kDim>
__device__ void add_products(const FragmentC (&weights)[kCount / 8], SharedTile<kDim> tile,
                             FragmentC (&sums)[kDim / 8]) {
#pragma unroll
  for (int c = 0; c < kCount / 16; ++c) {
    const auto& left = weights[2 * c].value;
    const auto& right = weights[2 * c + 1].value;
    const FragmentA a{{pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]),
                       pack_bf16(right[0], right[1]), pack_bf16(right[2], right[3])}};
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      FragmentB b[2];
      load_b_of_columns(tile, c * 16, n * 16, b);
      multiply_add(a, b[0], sums[2 * n]);
      multiply_add(a, b[1], sums[2 * n + 1]);
    }
  }
}

// Rows of the warp's fragments, from `first` on.
template <int kDim>
__device__ void store_rows(const FragmentC (&sums)[kDim / 8], const float (&factor)[2],
                           int64_t first, int64_t num_rows, int64_t stride, bfloat16* base) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + lane / 4 + half * 8;
    if (row >= num_rows) continue;
    bfloat16* at = base + row * stride + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<uint32_t*>(at + n * 8) = pack_bf16(
          factor[half] * sums[n].value[2 * half], factor[half] * sums[n].value[2 * half + 1]);
    }
  }
}

// ---- Forward
// -------------------------------------------------------------------------------------

// Over the four lanes that share a row.
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

  // Turns scores into weights relative to the new maximum, and shrinks `sums` to it.
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
      // Rows that have seen no key yet stay empty.
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

// scores *= factor; pairs that do not see each other become -infinity, if there may be any.
//   query, key  of the tile's first row and column
template <int kCount>
__device__ void scale_and_mask(const AttentionProblem& p, int64_t b, int64_t query, int64_t key,
                               float factor, bool has_unseen, FragmentC (&scores)[kCount / 8]) {
#pragma unroll
  for (FragmentC& s : scores) {
#pragma unroll
    for (float& value : s.value) value *= factor;
  }
  if (!has_unseen) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = query + lane / 4 + half * 8;
    // Places of the row's first and last key within the tile.
    const auto begin = static_cast<int>((row < p.seq_len ? p.first_key(b, row) : 0) - key);
    const auto end = static_cast<int>(row - key);
#pragma unroll
    for (int n = 0; n < kCount / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = n * 8 + lane % 4 * 2 + i;
        if (column < begin || column > end) scores[n].value[2 * half + i] = -INFINITY;
      }
    }
  }
}

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
  // Long rows first: they take the most time.
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
  __syncthreads();  // all of q is here
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) queries[c] = load_a_of_rows(q_tile, warp_row, c * 16);

  RunningSoftmax softmax;
  FragmentC sums[kDim / 8];
  for (int64_t i = first_tile; i < end_tile; ++i) {
    start_tiles(i + 1);
    wait_for_async_copies<1>();
    __syncthreads();  // tile i is here
    const int64_t key = i * kForwardKeys;
    FragmentC scores[kForwardKeys / 8];
    multiply_by_rows<kForwardKeys>([&](int c) { return queries[c]; }, k_tile(i), scores);
    const bool has_unseen =
        key + kForwardKeys - 1 > warp_first || (p.document_start && p.first_key(b, last) > key);
    scale_and_mask<kForwardKeys>(p, b, warp_first, key, factor, has_unseen, scores);
    softmax.update(scores, sums);
    add_products<kForwardKeys>(scores, v_tile(i), sums);
    __syncthreads();  // tile i has been read: the one after the next may take its place
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

// ---- Backward
// ------------------------------------------------------------------------------------

template <int kDim>
constexpr size_t kBackwardShared = tile_bytes<kDim>(2 * kRows + 4 * kBackwardColumns) +
                                   sizeof(float) * 4 * kBackwardColumns;

// probs = exp2(scores - lse), dprobs -> probs * (dprobs - delta): the gradient of the scaled scores
// (algorithm 2, lines 11 to 14). lse(i, n) and delta(i, n) are those of value i of fragment n.
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

// Block (query tile, head, sequence): the keys stream by.
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
    __syncthreads();  // tile i, and before the first one q and dout, are here
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

// As scale_and_mask, of scores whose rows are keys and whose columns are queries.
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

  // Queries before the keys do not see them, nor do those whose document begins after them; the
  // starts of documents do not decrease.
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

// Block (key tile, key/value head, sequence): the queries of all heads of the group stream by, in
// order.
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
      if (threadIdx.x < kBackwardColumns) {
        const int64_t row = query + threadIdx.x;
        const auto at = i % 2 * kBackwardColumns + threadIdx.x;
        const bool is_here = row < p.seq_len;
        lse_tile[at] = is_here ? lse[p.lse_row(b, head) + row] * kLog2E : INFINITY;
        delta_tile[at] = is_here ? delta[p.lse_row(b, head) + row] : 0.0f;
      }
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
    __syncthreads();  // tile i, and before the first one k and v, are here
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

// ---- Launches
// ------------------------------------------------------------------------------------

dim3 tiles_of(const AttentionProblem& p, int64_t heads, int64_t batch) {
  return dim3(num_blocks(p.seq_len, kRows), static_cast<unsigned int>(heads),
              static_cast<unsigned int>(batch));
}

// Calls body.operator()<kDim>().
template <class Body>
void dispatch_head_dim(int64_t head_dim, const Body& body) {
  head_dim == 64 ? body.template operator()<64>() : body.template operator()<128>();
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
  dispatch_head_dim(problem.head_dim, [&]<int kDim>() {
    launch(flash_forward_kernel<kDim>, tiles_of(problem, problem.heads, batch), kThreads,
           kForwardShared<kDim>, stream, problem, q, k, v, out, lse);
  });
}

void tensor_core_attention_backward(Stream& stream, const AttentionProblem& problem, int64_t batch,
                                    const bfloat16* dout, const bfloat16* q, const bfloat16* k,
                                    const bfloat16* v, const float* lse, const float* delta,
                                    bfloat16* dq, bfloat16* dk, bfloat16* dv) {
  dispatch_head_dim(problem.head_dim, [&]<int kDim>() {
    launch(flash_backward_kv_kernel<kDim>, tiles_of(problem, problem.kv_heads, batch), kThreads,
           kBackwardShared<kDim>, stream, problem, dout, q, k, v, lse, delta, dk, dv);
    launch(flash_backward_q_kernel<kDim>, tiles_of(problem, problem.heads, batch), kThreads,
           kBackwardShared<kDim>, stream, problem, dout, q, k, v, lse, delta, dq);
  });
}

}  // namespace switchyard::cuda
