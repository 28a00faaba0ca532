#include "kernels/attention/attention.h"

#include <algorithm>

#include "kernels/attention/attention_method.h"
#include "kernels/cuda/attention_problem.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/device_position.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch.h"
#include "kernels/decode/attend_cached.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/cuda_limits.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

// These kernels take every head_dim up to 256 and both dtypes, and multiply f32 on the CUDA cores:
// f32 losses then agree with the CPU's, which TF32 would not allow. bf16 with head_dim 64 or 128
// runs on tensor cores (attention_tensor_core.cu).
//
// A block has 16 x 16 threads. Thread (x, y) holds rows y + 16 i and columns x + 16 j of a tile of
// scores, and columns x + 16 c, c < kColumns, of rows of head_dim elements. Rows are padded with
// zeros to 16 kColumns elements in shared memory.

constexpr int kSide = 16;
constexpr int kThreads = kSide * kSide;
constexpr int kKeys = 32;             // keys of a tile
constexpr int kForwardQueries = 64;   // queries of a tile, forward
constexpr int kBackwardQueries = 32;  // backward

// Rows of a tile in shared memory have one extra element: threads that read a column then access
// different banks.
template <int kColumns>
constexpr int kRow = kSide* kColumns + 1;

// Loads rows [first, first + kRows) of a matrix into a tile; rows beyond num_rows become zero.
//   stride  elements from one row to the next
template <int kRows, int kColumns, class T>
__device__ void load_tile(const T* base, int64_t stride, int64_t first, int64_t num_rows,
                          int64_t width, float* tile) {
  for (int r = static_cast<int>(threadIdx.y); r < kRows; r += kSide) {
    const bool is_here = first + r < num_rows;
    const T* row = base + (first + r) * stride;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = static_cast<int>(threadIdx.x) + c * kSide;
      tile[r * kRow<kColumns> + column] =
          is_here && column < width ? static_cast<float>(row[column]) : 0.0f;
    }
  }
}

// out[i][j] = <row y + 16 i of a, row x + 16 j of b>
template <int kI, int kJ, int kColumns>
__device__ void row_products(const float* a, const float* b, float (&out)[kI][kJ]) {
#pragma unroll
  for (int i = 0; i < kI; ++i) {
#pragma unroll
    for (int j = 0; j < kJ; ++j) out[i][j] = 0.0f;
  }
#pragma unroll 8
  for (int d = 0; d < kSide * kColumns; ++d) {
    float left[kI], right[kJ];
#pragma unroll
    for (int i = 0; i < kI; ++i) left[i] = a[(threadIdx.y + i * kSide) * kRow<kColumns> + d];
#pragma unroll
    for (int j = 0; j < kJ; ++j) right[j] = b[(threadIdx.x + j * kSide) * kRow<kColumns> + d];
#pragma unroll
    for (int i = 0; i < kI; ++i) {
#pragma unroll
      for (int j = 0; j < kJ; ++j) out[i][j] += left[i] * right[j];
    }
  }
}

// sums[i][c] += sum over k < kCount of weights(y + 16 i, k) * rows[k][x + 16 c]; rows of the stored
// weights, which are columns if transposed, have `weight_row` elements.
template <int kCount, bool kTransposed, int kI, int kColumns>
__device__ void add_weighted_rows(const float* weights, int weight_row, const float* rows,
                                  float (&sums)[kI][kColumns]) {
#pragma unroll 4
  for (int k = 0; k < kCount; ++k) {
    float weight[kI];
#pragma unroll
    for (int i = 0; i < kI; ++i) {
      const int r = static_cast<int>(threadIdx.y) + i * kSide;
      weight[i] = kTransposed ? weights[k * weight_row + r] : weights[r * weight_row + k];
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float value = rows[k * kRow<kColumns> + threadIdx.x + c * kSide];
#pragma unroll
      for (int i = 0; i < kI; ++i) sums[i][c] += weight[i] * value;
    }
  }
}

template <int kI, int kColumns, class T>
__device__ void store_rows(const float (&values)[kI][kColumns], int64_t first, int64_t num_rows,
                           int64_t width, int64_t stride, T* base) {
#pragma unroll
  for (int i = 0; i < kI; ++i) {
    const int64_t row = first + threadIdx.y + i * kSide;
    if (row >= num_rows) continue;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = static_cast<int>(threadIdx.x) + c * kSide;
      if (column < width) base[row * stride + column] = from_float<T>(values[i][c]);
    }
  }
}

// Over the 16 threads that share a row.
__device__ float row_max(float value) {
  for (int offset = kSide / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}
__device__ float row_sum(float value) {
  for (int offset = kSide / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

// ---- Forward -----------------------------------------------------------------------------------

template <int kColumns>
constexpr size_t kForwardShared = sizeof(float) *
                                  (kForwardQueries * kRow<kColumns> + 2 * kKeys * kRow<kColumns> +
                                   kForwardQueries * (kKeys + 1));

// Block (query tile, head, sequence); FlashAttention-2, algorithm 1.
template <int kColumns, class T>
__global__ void __launch_bounds__(kThreads)
    attention_forward_kernel(AttentionProblem p, const T* q, const T* k, const T* v, T* out,
                             float* lse) {
  constexpr int kI = kForwardQueries / kSide, kJ = kKeys / kSide;
  float* q_tile = dynamic_shared<float>();
  float* k_tile = q_tile + kForwardQueries * kRow<kColumns>;
  float* v_tile = k_tile + kKeys * kRow<kColumns>;
  float* probs = v_tile + kKeys * kRow<kColumns>;  // [queries, kKeys + 1]
  const int64_t b = blockIdx.z, head = blockIdx.y, kv_head = p.kv_head_of(head);
  // Long rows come first, because they take the most time.
  const int64_t first = (gridDim.x - 1 - blockIdx.x) * int64_t{kForwardQueries};
  load_tile<kForwardQueries, kColumns>(q + p.q_row(b, head, 0), p.head_dim, first, p.seq_len,
                                       p.head_dim, q_tile);
  float sums[kI][kColumns] = {}, largest[kI], total[kI] = {};
#pragma unroll
  for (int i = 0; i < kI; ++i) largest[i] = -INFINITY;

  const int64_t end = min(p.seq_len, first + kForwardQueries);
  for (int64_t key = p.first_key(b, first) / kKeys * kKeys; key < end; key += kKeys) {
    __syncthreads();  // the previous tiles have been read
    load_tile<kKeys, kColumns>(k + p.kv_row(b, kv_head, 0), p.head_dim, key, p.seq_len, p.head_dim,
                               k_tile);
    load_tile<kKeys, kColumns>(v + p.kv_row(b, kv_head, 0), p.head_dim, key, p.seq_len, p.head_dim,
                               v_tile);
    __syncthreads();  // the tiles are complete
    float scores[kI][kJ];
    row_products<kI, kJ, kColumns>(q_tile, k_tile, scores);
#pragma unroll
    for (int i = 0; i < kI; ++i) {
      const int row = static_cast<int>(threadIdx.y) + i * kSide;
      const int64_t query = first + row;
      float best = largest[i];
#pragma unroll
      for (int j = 0; j < kJ; ++j) {
        const int64_t at = key + threadIdx.x + j * kSide;
        const bool seen = query < p.seq_len && p.sees(b, query, at);
        scores[i][j] = seen ? p.scale * scores[i][j] : -INFINITY;
        best = fmaxf(best, scores[i][j]);
      }
      best = row_max(best);
      // Rows that have not seen a key yet keep sums of zero.
      const float shift = best == -INFINITY ? 0.0f : best;
      const float shrink = expf(largest[i] - shift);
      float added = 0.0f;
#pragma unroll
      for (int j = 0; j < kJ; ++j) {
        const float prob = expf(scores[i][j] - shift);
        probs[row * (kKeys + 1) + threadIdx.x + j * kSide] = prob;
        added += prob;
      }
      total[i] = total[i] * shrink + row_sum(added);
      largest[i] = best;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[i][c] *= shrink;
    }
    __syncthreads();  // probs are complete
    add_weighted_rows<kKeys, false>(probs, kKeys + 1, v_tile, sums);
  }
#pragma unroll
  for (int i = 0; i < kI; ++i) {
    const int64_t query = first + threadIdx.y + i * kSide;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sums[i][c] /= total[i];
    if (threadIdx.x == 0 && query < p.seq_len) {
      lse[p.lse_row(b, head) + query] = largest[i] + logf(total[i]);
    }
  }
  store_rows(sums, first, p.seq_len, p.head_dim, p.heads * p.head_dim, out + p.out_row(b, head, 0));
}

// ---- Backward ----------------------------------------------------------------------------------

// delta[b, h, t] = <dout, out> of the row: one warp per row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_delta_kernel(AttentionProblem p, const T* dout, const T* out, int64_t rows,
                           float* delta) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (row >= rows) return;
  const int64_t t = row % p.seq_len, h = row / p.seq_len % p.heads, b = row / (p.seq_len * p.heads);
  const int64_t at = p.out_row(b, h, t);
  float dot = 0.0f;
  for (int64_t i = threadIdx.x % kWarpSize; i < p.head_dim; i += kWarpSize) {
    dot += static_cast<float>(dout[at + i]) * static_cast<float>(out[at + i]);
  }
  dot = warp_sum(dot);
  if (threadIdx.x % kWarpSize == 0) delta[row] = dot;
}

template <int kColumns>
constexpr size_t kBackwardShared = sizeof(float) * (2 * kKeys * kRow<kColumns> +
                                                    2 * kBackwardQueries * kRow<kColumns> +
                                                    2 * kBackwardQueries * (kKeys + 1));

// The four tiles and the two score matrices of a backward block.
template <int kColumns>
struct BackwardTiles {
  float *k, *v, *q, *dout, *probs, *dscores;

  __device__ BackwardTiles() {
    k = dynamic_shared<float>();
    v = k + kKeys * kRow<kColumns>;
    q = v + kKeys * kRow<kColumns>;
    dout = q + kBackwardQueries * kRow<kColumns>;
    probs = dout + kBackwardQueries * kRow<kColumns>;
    dscores = probs + kBackwardQueries * (kKeys + 1);
  }
};

// probs = exp(scale q k^T - lse) and dscores = scale * probs * (dout v^T - delta) of one tile of
// queries and one of keys (FlashAttention-2, algorithm 2).
template <int kColumns>
__device__ void backward_scores(const AttentionProblem& p, int64_t b, int64_t head,
                                int64_t first_query, int64_t first_key, const float* lse,
                                const float* delta, const BackwardTiles<kColumns>& tiles) {
  constexpr int kI = kBackwardQueries / kSide, kJ = kKeys / kSide;
  float scores[kI][kJ], dprobs[kI][kJ];
  row_products<kI, kJ, kColumns>(tiles.q, tiles.k, scores);
  row_products<kI, kJ, kColumns>(tiles.dout, tiles.v, dprobs);
#pragma unroll
  for (int i = 0; i < kI; ++i) {
    const int row = static_cast<int>(threadIdx.y) + i * kSide;
    const int64_t query = first_query + row;
    const bool is_here = query < p.seq_len;
    const float log_sum = is_here ? lse[p.lse_row(b, head) + query] : 0.0f;
    const float mean = is_here ? delta[p.lse_row(b, head) + query] : 0.0f;
#pragma unroll
    for (int j = 0; j < kJ; ++j) {
      const int column = static_cast<int>(threadIdx.x) + j * kSide;
      const bool seen = is_here && p.sees(b, query, first_key + column);
      const float prob = seen ? expf(p.scale * scores[i][j] - log_sum) : 0.0f;
      tiles.probs[row * (kKeys + 1) + column] = prob;
      tiles.dscores[row * (kKeys + 1) + column] = p.scale * prob * (dprobs[i][j] - mean);
    }
  }
}

// Block (key tile, key/value head, sequence) loops over the queries of all heads of the group, in
// order.
template <int kColumns, class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_kv_kernel(AttentionProblem p, const T* dout, const T* q, const T* k,
                                 const T* v, const float* lse, const float* delta, T* dk, T* dv) {
  constexpr int kI = kKeys / kSide;
  const BackwardTiles<kColumns> tiles;
  const int64_t b = blockIdx.z, kv_head = blockIdx.y, group = p.heads / p.kv_heads;
  const int64_t key = int64_t{blockIdx.x} * kKeys;
  load_tile<kKeys, kColumns>(k + p.kv_row(b, kv_head, 0), p.head_dim, key, p.seq_len, p.head_dim,
                             tiles.k);
  load_tile<kKeys, kColumns>(v + p.kv_row(b, kv_head, 0), p.head_dim, key, p.seq_len, p.head_dim,
                             tiles.v);
  float dk_sums[kI][kColumns] = {}, dv_sums[kI][kColumns] = {};
  const int64_t last_key = min(p.seq_len, key + kKeys) - 1;
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    // Queries that precede the keys, or whose document begins after them, do not see them.
    for (int64_t query = key / kBackwardQueries * kBackwardQueries; query < p.seq_len;
         query += kBackwardQueries) {
      if (p.first_key(b, query) > last_key) break;
      __syncthreads();  // the previous tiles have been read
      load_tile<kBackwardQueries, kColumns>(q + p.q_row(b, head, 0), p.head_dim, query, p.seq_len,
                                            p.head_dim, tiles.q);
      load_tile<kBackwardQueries, kColumns>(dout + p.out_row(b, head, 0), p.heads * p.head_dim,
                                            query, p.seq_len, p.head_dim, tiles.dout);
      __syncthreads();  // the tiles are complete
      backward_scores<kColumns>(p, b, head, query, key, lse, delta, tiles);
      __syncthreads();  // probs and dscores are complete
      add_weighted_rows<kBackwardQueries, true>(tiles.probs, kKeys + 1, tiles.dout, dv_sums);
      add_weighted_rows<kBackwardQueries, true>(tiles.dscores, kKeys + 1, tiles.q, dk_sums);
    }
  }
  store_rows(dk_sums, key, p.seq_len, p.head_dim, p.head_dim, dk + p.kv_row(b, kv_head, 0));
  store_rows(dv_sums, key, p.seq_len, p.head_dim, p.head_dim, dv + p.kv_row(b, kv_head, 0));
}

// Block (query tile, head, sequence).
template <int kColumns, class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_q_kernel(AttentionProblem p, const T* dout, const T* q, const T* k,
                                const T* v, const float* lse, const float* delta, T* dq) {
  constexpr int kI = kBackwardQueries / kSide;
  const BackwardTiles<kColumns> tiles;
  const int64_t b = blockIdx.z, head = blockIdx.y, kv_head = p.kv_head_of(head);
  const int64_t query = (gridDim.x - 1 - blockIdx.x) * int64_t{kBackwardQueries};
  load_tile<kBackwardQueries, kColumns>(q + p.q_row(b, head, 0), p.head_dim, query, p.seq_len,
                                        p.head_dim, tiles.q);
  load_tile<kBackwardQueries, kColumns>(dout + p.out_row(b, head, 0), p.heads * p.head_dim, query,
                                        p.seq_len, p.head_dim, tiles.dout);
  float sums[kI][kColumns] = {};
  const int64_t end = min(p.seq_len, query + kBackwardQueries);
  for (int64_t key = p.first_key(b, query) / kKeys * kKeys; key < end; key += kKeys) {
    __syncthreads();  // the previous tiles have been read
    load_tile<kKeys, kColumns>(k + p.kv_row(b, kv_head, 0), p.head_dim, key, p.seq_len, p.head_dim,
                               tiles.k);
    load_tile<kKeys, kColumns>(v + p.kv_row(b, kv_head, 0), p.head_dim, key, p.seq_len, p.head_dim,
                               tiles.v);
    __syncthreads();  // the tiles are complete
    backward_scores<kColumns>(p, b, head, query, key, lse, delta, tiles);
    __syncthreads();  // dscores are complete
    add_weighted_rows<kKeys, false>(tiles.dscores, kKeys + 1, tiles.k, sums);
  }
  store_rows(sums, query, p.seq_len, p.head_dim, p.head_dim, dq + p.q_row(b, head, 0));
}

// ---- Launches ----------------------------------------------------------------------------------

// Calls body.operator()<kColumns>().
template <class Body>
void dispatch_head_dim(int64_t head_dim, const Body& body) {
  require(head_dim <= cuda_limits::kHeadDim, "CUDA attends with heads of up to {} elements, not {}",
          cuda_limits::kHeadDim, head_dim);
  if (head_dim <= 16) return body.template operator()<1>();
  if (head_dim <= 32) return body.template operator()<2>();
  if (head_dim <= 64) return body.template operator()<4>();
  if (head_dim <= 128) return body.template operator()<8>();
  body.template operator()<16>();
}

void require_shared_for(Stream& stream, size_t num_bytes, const AttentionProblem& problem) {
  require_shared_memory(stream, num_bytes,
                        fmt::format("attention with heads of {} elements", problem.head_dim));
}

bool uses_cudnn(ConstTensorView q, ConstTensorView document_start, bool backward) {
  return attention_method() == AttentionMethod::cudnn && has_cudnn() &&
         fits_cudnn(q, document_start, backward);
}

AttentionProblem problem_of(ConstTensorView q, ConstTensorView k, ConstTensorView document_start,
                            float scale) {
  return {.heads = q.dim(1),
          .kv_heads = k.dim(1),
          .seq_len = q.dim(2),
          .head_dim = q.dim(3),
          .scale = scale,
          .document_start = document_start ? document_start.data<int32_t>() : nullptr};
}

dim3 tiles_of(const AttentionProblem& p, int rows, int64_t heads, int64_t batch) {
  return dim3(num_blocks(p.seq_len, rows), static_cast<unsigned int>(heads),
              static_cast<unsigned int>(batch));
}

constexpr int kAppendThreads = 256;

// A thread per piece of a row: 16 bytes, or two where those do not fit.
//   x  [heads, seq_len, pieces] of all sequences
template <class Piece>
__global__ void __launch_bounds__(kAppendThreads)
    append_to_cache_kernel(const Piece* x, int64_t heads, int64_t seq_len, int64_t max_len,
                           int64_t pieces, DevicePosition first_position, Piece* cache) {
  const int64_t i = int64_t{blockIdx.x} * kAppendThreads + threadIdx.x;
  if (i >= heads * seq_len * pieces) return;
  const int64_t row = i / pieces, head = row / seq_len;
  const int64_t to = head * max_len + first_position.value() + row % seq_len;
  cache[to * pieces + i % pieces] = x[i];
}

}  // namespace

void cuda::attention_forward(Stream& stream, Workspace& workspace, ConstTensorView q,
                             ConstTensorView k, ConstTensorView v, ConstTensorView document_start,
                             float scale, TensorView out, TensorView lse) {
  if (uses_cudnn(q, document_start, /*backward=*/false) &&
      cudnn_attention_forward(stream, workspace, q, k, v, scale, out, lse)) {
    return;
  }
  const AttentionProblem p = problem_of(q, k, document_start, scale);
  if (fits_tensor_cores(p, q.dtype(), {q.raw(), k.raw(), v.raw(), out.raw()})) {
    return tensor_core_attention_forward(stream, p, q.dim(0), q.data<bfloat16>(),
                                         k.data<bfloat16>(), v.data<bfloat16>(),
                                         out.data<bfloat16>(), lse.data<float>());
  }
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    dispatch_head_dim(p.head_dim, [&]<int kColumns>() {
      require_shared_for(stream, kForwardShared<kColumns>, p);
      launch(attention_forward_kernel<kColumns, T>, tiles_of(p, kForwardQueries, p.heads, q.dim(0)),
             dim3(kSide, kSide), kForwardShared<kColumns>, stream, p, q.data<T>(), k.data<T>(),
             v.data<T>(), out.data<T>(), lse.data<float>());
    });
  });
}

void cuda::attention_backward(Stream& stream, Workspace& workspace, ConstTensorView dout,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView lse,
                              ConstTensorView document_start, float scale, TensorView dq,
                              TensorView dk, TensorView dv) {
  if (uses_cudnn(q, document_start, /*backward=*/true) &&
      cudnn_attention_backward(stream, workspace, dout, q, k, v, out, lse, scale, dq, dk, dv)) {
    return;
  }
  const AttentionProblem p = problem_of(q, k, document_start, scale);
  const int64_t batch = q.dim(0), rows = batch * p.heads * p.seq_len;
  WorkspaceScope scope(workspace);
  float* delta = attention_backward_scratch(workspace, q).data<float>();
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    launch(attention_delta_kernel<T>, num_blocks(rows, kThreads / kWarpSize), kThreads, 0, stream,
           p, dout.data<T>(), out.data<T>(), rows, delta);
  });
  if (fits_tensor_cores(p, q.dtype(),
                        {dout.raw(), q.raw(), k.raw(), v.raw(), dq.raw(), dk.raw(), dv.raw()})) {
    return tensor_core_attention_backward(
        stream, p, batch, dout.data<bfloat16>(), q.data<bfloat16>(), k.data<bfloat16>(),
        v.data<bfloat16>(), lse.data<float>(), delta, dq.data<bfloat16>(), dk.data<bfloat16>(),
        dv.data<bfloat16>());
  }
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    dispatch_head_dim(p.head_dim, [&]<int kColumns>() {
      const dim3 block(kSide, kSide);
      require_shared_for(stream, kBackwardShared<kColumns>, p);
      launch(attention_backward_kv_kernel<kColumns, T>, tiles_of(p, kKeys, p.kv_heads, batch),
             block, kBackwardShared<kColumns>, stream, p, dout.data<T>(), q.data<T>(), k.data<T>(),
             v.data<T>(), lse.data<float>(), delta, dk.data<T>(), dv.data<T>());
      launch(attention_backward_q_kernel<kColumns, T>,
             tiles_of(p, kBackwardQueries, p.heads, batch), block, kBackwardShared<kColumns>,
             stream, p, dout.data<T>(), q.data<T>(), k.data<T>(), v.data<T>(), lse.data<float>(),
             delta, dq.data<T>());
    });
  });
}

void cuda::append_to_cache(Stream& stream, ConstTensorView x, const FirstPosition& first_position,
                           TensorView cache) {
  if (x.num_elements() == 0) return;
  const size_t row_bytes = static_cast<size_t>(x.dim(3)) * size_of(x.dtype());
  const auto append = [&]<class Piece>() {
    const auto pieces = static_cast<int64_t>(row_bytes / sizeof(Piece));
    launch(append_to_cache_kernel<Piece>,
           num_blocks(x.num_elements() / x.dim(3) * pieces, kAppendThreads), kAppendThreads, 0,
           stream, static_cast<const Piece*>(x.raw()), x.dim(0) * x.dim(1), x.dim(2), cache.dim(2),
           pieces, DevicePosition(first_position), static_cast<Piece*>(cache.raw()));
  };
  if (row_bytes % sizeof(uint4) == 0 && allow_vectors(x.raw(), cache.raw())) {
    append.template operator()<uint4>();
  } else {
    append.template operator()<uint16_t>();
  }
}

void cuda::decode_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                            ConstTensorView k_cache, ConstTensorView v_cache,
                            ConstTensorView lengths, float scale, TensorView out) {
  cuda::attend_cached(stream, workspace, q, k_cache, v_cache, {}, lengths, {}, scale, out);
}

}  // namespace switchyard
