#include "kernels/decode/received_attention.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_blocks.h"
#include "kernels/cpu/simd.h"
#include "kernels/inline/vector_math.h"
#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

void require_heads(ConstTensorView q, int64_t kv_heads) {
  require(kv_heads > 0 && q.dim(1) % kv_heads == 0,
          "{} query heads cannot share {} key/value heads", q.dim(1), kv_heads);
}

}  // namespace

namespace cpu {
namespace {

ThreadScratch received_attention_scratch(Workspace& workspace, int64_t head_dim) {
  return ThreadScratch(workspace, kQueryRows * kKeyRows + (kQueryRows + kKeyRows) * head_dim);
}

// What keys [first, first + count) of one (sequence, key/value head) receive.
//   q, lse  of the `group` query heads that share the head
template <class T>
void receive_block(const T* q, const float* lse, const T* k, int64_t group, int64_t seq_len,
                   int64_t head_dim, int64_t first, int64_t count, int64_t first_query, float scale,
                   ThreadScratch::Pieces pieces, float* received) {
  float* scores = pieces.take(kQueryRows * kKeyRows);
  float* queries_f32 = pieces.take(kQueryRows * head_dim);  // only for bf16
  const Rows<float> keys =
      as_factor(k + first * head_dim, count, head_dim, head_dim, pieces.take(kKeyRows * head_dim));
  std::fill_n(received, count, 0.0f);
  for (int64_t g = 0; g < group; ++g) {
    // Queries before `first` see none of these keys.
    for (int64_t begin = std::max(first_query, first); begin < seq_len; begin += kQueryRows) {
      const int64_t rows = std::min(kQueryRows, seq_len - begin);
      const Rows<float> queries =
          as_factor(q + (g * seq_len + begin) * head_dim, rows, head_dim, head_dim, queries_f32);
      product(queries, Transpose::no, keys, Transpose::yes, rows, count, head_dim, Accumulate::no,
              scores);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t visible = std::min(count, begin + i + 1 - first);
        const float* of_query = scores + i * count;
        const float shift = lse[g * seq_len + begin + i];
#pragma omp simd
        for (int64_t j = 0; j < visible; ++j) received[j] += fast_exp(scale * of_query[j] - shift);
      }
    }
  }
}

template <class T>
void receive(Workspace& workspace, ConstTensorView q, ConstTensorView k, ConstTensorView lse,
             int64_t first_query, float scale, TensorView received) {
  // Clang shares no structured bindings with threads of OpenMP.
  const AttentionShape shape = shape_of(q, k);
  const int64_t kv_heads = shape.kv_heads, seq_len = shape.seq_len, head_dim = shape.head_dim;
  const int64_t group = shape.heads / kv_heads, blocks = ceil_div(seq_len, kKeyRows);
  const int64_t max_len = received.dim(2), size = seq_len * head_dim;
  WorkspaceScope scope(workspace);
  const ThreadScratch scratch = received_attention_scratch(workspace, head_dim);
// Every block of keys has its own sums. The first ones are seen by most queries.
#pragma omp parallel for schedule(dynamic)
  for (int64_t item = 0; item < shape.batch * kv_heads * blocks; ++item) {
    const int64_t row = item / blocks, first = item % blocks * kKeyRows;
    receive_block(q.data<T>() + row * group * size, lse.data<float>() + row * group * seq_len,
                  k.data<T>() + row * size, group, seq_len, head_dim, first,
                  std::min(kKeyRows, seq_len - first), first_query, scale, scratch.mine(),
                  received.data<float>() + row * max_len + first);
  }
}

template <class T>
float dot(const T* x, const T* y, int64_t n) {
  simd::Floats sums = 0.0f;
  int64_t i = 0;
  for (; i + simd::kLanes <= n; i += simd::kLanes) sums += simd::load(x + i) * simd::load(y + i);
  float total = simd::sum_of(sums);
  for (; i < n; ++i) total += static_cast<float>(x[i]) * static_cast<float>(y[i]);
  return total;
}

// Adds the softmax of one query over the listed keys to `sums`.
//   weights, sums  [count]
template <class T>
void add_softmax(const T* q, const T* k, int64_t head_dim, const int32_t* list, int64_t count,
                 float scale, float* weights, float* sums) {
  float greatest = -kInfinity, total = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = scale * dot(q, k + list[i] * head_dim, head_dim);
    greatest = std::max(greatest, weights[i]);
  }
  for (int64_t i = 0; i < count; ++i) total += weights[i] = fast_exp(weights[i] - greatest);
  for (int64_t i = 0; i < count; ++i) sums[i] += weights[i] / total;
}

template <class T>
void evict(Workspace& workspace, ConstTensorView q, ConstTensorView k_cache,
           ConstTensorView indices, ConstTensorView counts, ConstTensorView lengths, float scale,
           TensorView scores) {
  const int64_t kv_heads = k_cache.dim(1), max_len = k_cache.dim(2), head_dim = k_cache.dim(3);
  const int64_t group = q.dim(1) / kv_heads, stride = indices.dim(2);
  WorkspaceScope scope(workspace);
  const TensorView scratch = evict_and_score_scratch(workspace, indices);
#pragma omp parallel for schedule(dynamic)
  for (int64_t row = 0; row < q.dim(0) * kv_heads; ++row) {
    const int32_t* list = indices.data<int32_t>() + row * stride;
    const int64_t count = counts.data<int32_t>()[row / kv_heads];
    float *weights = scratch.data<float>() + row * 2 * stride, *sums = weights + stride;
    float* own = scores.data<float>() + row * max_len;
    for (int64_t i = 0; i < count; ++i) sums[i] = own[list[i]];
    for (int64_t g = 0; g < group; ++g) {
      add_softmax(q.data<T>() + (row * group + g) * head_dim,
                  k_cache.data<T>() + row * max_len * head_dim, head_dim, list, count, scale,
                  weights, sums);
    }
    std::fill_n(own, lengths.data<int32_t>()[row / kv_heads], -kInfinity);
    for (int64_t i = 0; i < count; ++i) own[list[i]] = sums[i];
  }
}

}  // namespace
}  // namespace cpu

void received_attention(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                        ConstTensorView lse, int64_t first_query, float scale,
                        TensorView received) {
  require(q.rank() == 4 && k.rank() == 4 && received.rank() == 3,
          "q has shape {}, k {} and received {}, expected four, four and three dimensions",
          q.shape(), k.shape(), received.shape());
  require_heads(q, k.dim(1));
  require_shape(k, {q.dim(0), k.dim(1), q.dim(2), q.dim(3)}, "k");
  require_dtype(k, q.dtype(), "k");
  require_shape(lse, {q.dim(0), q.dim(1), q.dim(2)}, "lse");
  require_dtype(lse, DType::f32, "lse");
  require_shape(received, {q.dim(0), k.dim(1), received.dim(2)}, "received");
  require_dtype(received, DType::f32, "received");
  require(received.dim(2) >= q.dim(2), "received has room for {} keys, there are {}",
          received.dim(2), q.dim(2));
  require(first_query >= 0, "first_query is {}, must not be negative", first_query);
  count_scratch(
      stream, workspace, [&] { cpu::received_attention_scratch(workspace, q.dim(3)); }, no_scratch);
  SWITCHYARD_BODY(stream, received_attention)
  (stream, workspace, q, k, lse, first_query, scale, received);
}

void evict_and_score(Stream& stream, Workspace& workspace, ConstTensorView q,
                     ConstTensorView k_cache, ConstTensorView indices, ConstTensorView counts,
                     ConstTensorView lengths, float scale, TensorView scores) {
  require(q.rank() == 3 && k_cache.rank() == 4 && indices.rank() == 3,
          "q has shape {}, k_cache {} and indices {}, expected three, four and three dimensions",
          q.shape(), k_cache.shape(), indices.shape());
  const int64_t batch = q.dim(0), kv_heads = k_cache.dim(1);
  require_heads(q, kv_heads);
  require_shape(k_cache, {batch, kv_heads, k_cache.dim(2), q.dim(2)}, "k_cache");
  require_dtype(k_cache, q.dtype(), "k_cache");
  require_shape(indices, {batch, kv_heads, indices.dim(2)}, "indices");
  require_dtype(indices, DType::i32, "indices");
  require_shape(counts, {batch}, "counts");
  require_dtype(counts, DType::i32, "counts");
  require_shape(lengths, {batch}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(scores, {batch, kv_heads, k_cache.dim(2)}, "scores");
  require_dtype(scores, DType::f32, "scores");
  const auto scratch = [&] { evict_and_score_scratch(workspace, indices); };
  count_scratch(stream, workspace, scratch, scratch);
  SWITCHYARD_BODY(stream, evict_and_score)
  (stream, workspace, q, k_cache, indices, counts, lengths, scale, scores);
}

TensorView evict_and_score_scratch(Workspace& workspace, ConstTensorView indices) {
  return workspace.take({indices.dim(0) * indices.dim(1), 2, indices.dim(2)}, DType::f32);
}

void cpu::received_attention(Stream&, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                             ConstTensorView lse, int64_t first_query, float scale,
                             TensorView received) {
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    receive<T>(workspace, q, k, lse, first_query, scale, received);
  });
}

void cpu::evict_and_score(Stream&, Workspace& workspace, ConstTensorView q, ConstTensorView k_cache,
                          ConstTensorView indices, ConstTensorView counts, ConstTensorView lengths,
                          float scale, TensorView scores) {
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    evict<T>(workspace, q, k_cache, indices, counts, lengths, scale, scores);
  });
}

}  // namespace switchyard
