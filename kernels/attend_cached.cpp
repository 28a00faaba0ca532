#include "kernels/attend_cached.h"

#include <omp.h>

#include <algorithm>
#include <limits>

#include "kernels/dispatch.h"
#include "kernels/vector_math.h"

namespace switchyard::cpu {
namespace {

// Keys between two looks at the running maximum; their f32 rows of 128 stay in the L1 cache, where
// the query heads of a group find them.
constexpr int64_t kBlock = 64;
// Keys of one task. Every task leaves a partial result, and those of a head are combined in order:
// the work spreads over the threads when there are few heads, and the sums do not depend on how.
constexpr int64_t kTaskKeys = 1024;
// Query heads, and values, that share one pass over a row or an output.
constexpr int64_t kTogether = 4;
// How many rows ahead scattered rows are asked for.
constexpr int64_t kRowsAhead = 8;
constexpr int64_t kCacheLine = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows of one (sequence, kv head).
template <class T>
struct CachedRows {
  const T *k, *v;            // [max_len, head_dim]
  const int32_t* positions;  // of the task's keys; null: `first`, first + 1, ...
  int64_t first;

  int64_t position(int64_t i) const { return positions ? positions[i] : first + i; }
};

// Of the query heads of one (sequence, kv head) against the keys of one task: the running softmax
// (FlashAttention-2, Dao 2023, algorithm 1). `out` is not yet divided by `sum`.
struct Partial {
  static int64_t floats(int64_t group, int64_t head_dim) { return group * (head_dim + 2); }

  Partial(float* memory, int64_t group, int64_t head_dim)
      : out(memory), max(memory + group * head_dim), sum(max + group) {}

  float *out, *max, *sum;  // [group, head_dim], [group], [group]
};

// Head dimensions that are common are known to the compiler, which unrolls the loops over them.
template <int64_t kHeadDim>
constexpr int64_t extent(int64_t head_dim) {
  return kHeadDim > 0 ? kHeadDim : head_dim;
}

template <class T>
void prefetch_row(const T* row, int64_t n) {
  const auto* bytes = reinterpret_cast<const char*>(row);
  for (int64_t at = 0; at < n * static_cast<int64_t>(sizeof(T)); at += kCacheLine) {
    __builtin_prefetch(bytes + at);
  }
}

// scores[g * kBlock] = <q[g], key> for `heads` query heads.
template <int64_t kHeadDim, class T>
void score_key(const float* q, int64_t heads, const T* key, int64_t head_dim, float* scores) {
  const int64_t n = extent<kHeadDim>(head_dim);
  int64_t g = 0;
  for (; g + kTogether <= heads; g += kTogether) {
    const float *q0 = q + g * n, *q1 = q0 + n, *q2 = q1 + n, *q3 = q2 + n;
    float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t d = 0; d < n; ++d) {
      const auto x = static_cast<float>(key[d]);
      s0 += q0[d] * x;
      s1 += q1[d] * x;
      s2 += q2[d] * x;
      s3 += q3[d] * x;
    }
    scores[g * kBlock] = s0;
    scores[(g + 1) * kBlock] = s1;
    scores[(g + 2) * kBlock] = s2;
    scores[(g + 3) * kBlock] = s3;
  }
  for (; g < heads; ++g) {
    const float* query = q + g * n;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < n; ++d) sum += query[d] * static_cast<float>(key[d]);
    scores[g * kBlock] = sum;
  }
}

// Turns the scores of one query head into exp(scale (score - max)), and raises max; what was summed
// before is scaled down.
void softmax_block(float scale, int64_t count, int64_t head_dim, float* scores, float& max,
                   float& sum, float* out) {
  float block_max = max;
#pragma omp simd reduction(max : block_max)
  for (int64_t i = 0; i < count; ++i) block_max = scores[i] > block_max ? scores[i] : block_max;
  if (block_max > max && max > -kInfinity) {
    const float factor = fast_exp(scale * (max - block_max));
    sum *= factor;
#pragma omp simd
    for (int64_t d = 0; d < head_dim; ++d) out[d] *= factor;
  }
  max = block_max;
  const float shift = scale * block_max;
  float block_sum = 0.0f;
#pragma omp simd reduction(+ : block_sum)
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = fast_exp(scale * scores[i] - shift);
    block_sum += scores[i];
  }
  sum += block_sum;
}

// out[g] += sum over i < rows of weights[g * kBlock + i] values[i], rows <= kTogether
template <int64_t kHeadDim, class T>
void add_values(const T* const (&values)[kTogether], int64_t rows, const float* weights,
                int64_t heads, int64_t head_dim, float* out) {
  const int64_t n = extent<kHeadDim>(head_dim);
  for (int64_t g = 0; g < heads; ++g) {
    const float* w = weights + g * kBlock;
    float* sum = out + g * n;
    if (rows == kTogether) {
      const T *v0 = values[0], *v1 = values[1], *v2 = values[2], *v3 = values[3];
      const float w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
#pragma omp simd
      for (int64_t d = 0; d < n; ++d) {
        sum[d] = sum[d] + w0 * static_cast<float>(v0[d]) + w1 * static_cast<float>(v1[d]) +
                 w2 * static_cast<float>(v2[d]) + w3 * static_cast<float>(v3[d]);
      }
      continue;
    }
    for (int64_t i = 0; i < rows; ++i) {
      const T* v = values[i];
      const float weight = w[i];
#pragma omp simd
      for (int64_t d = 0; d < n; ++d) sum[d] += weight * static_cast<float>(v[d]);
    }
  }
}

// `count` keys of a task, from its key `begin` on; at most kBlock.
//   scores  [heads, kBlock] scratch
template <int64_t kHeadDim, class T>
void attend_block(const CachedRows<T>& rows, int64_t begin, int64_t count, const float* q,
                  int64_t heads, int64_t head_dim, float scale, float* scores, Partial& partial) {
  const int64_t n = extent<kHeadDim>(head_dim);
  for (int64_t i = 0; i < count; ++i) {
    if (rows.positions) {
      const int64_t ahead = std::min(i + kRowsAhead, count - 1);
      prefetch_row(rows.k + rows.position(begin + ahead) * n, n);
      prefetch_row(rows.v + rows.position(begin + i) * n, n);
    }
    score_key<kHeadDim>(q, heads, rows.k + rows.position(begin + i) * n, n, scores + i);
  }
  for (int64_t g = 0; g < heads; ++g) {
    softmax_block(scale, count, n, scores + g * kBlock, partial.max[g], partial.sum[g],
                  partial.out + g * n);
  }
  for (int64_t i = 0; i < count; i += kTogether) {
    const int64_t together = std::min(kTogether, count - i);
    const T* values[kTogether] = {};
    for (int64_t j = 0; j < together; ++j) values[j] = rows.v + rows.position(begin + i + j) * n;
    add_values<kHeadDim>(values, together, scores + i, heads, n, partial.out);
  }
}

struct DecodeShape {
  int64_t kv_heads, group, max_len, head_dim;
};

template <int64_t kHeadDim, class T>
void attend_task(const DecodeShape& shape, const CachedRows<T>& rows, int64_t count, const T* q,
                 float scale, float* scratch, Partial partial) {
  const int64_t group = shape.group, n = extent<kHeadDim>(shape.head_dim);
  float *queries = scratch, *scores = scratch + group * n;
  for (int64_t i = 0; i < group * n; ++i) queries[i] = static_cast<float>(q[i]);
  std::fill_n(partial.out, group * n, 0.0f);
  std::fill_n(partial.max, group, -kInfinity);
  std::fill_n(partial.sum, group, 0.0f);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    attend_block<kHeadDim>(rows, begin, std::min(kBlock, count - begin), queries, group, n, scale,
                           scores, partial);
  }
}

// The results of a head's tasks become one, of which `out` is the quotient. The first task's memory
// holds the sums.
template <class T>
void combine(float* partials, int64_t tasks, int64_t group, int64_t head_dim, float scale, T* out) {
  Partial total(partials, group, head_dim);
  for (int64_t task = 1; task < tasks; ++task) {
    const Partial part(partials + task * Partial::floats(group, head_dim), group, head_dim);
    for (int64_t g = 0; g < group; ++g) {
      const float max = std::max(total.max[g], part.max[g]);
      const float before = fast_exp(scale * (total.max[g] - max));
      const float added = fast_exp(scale * (part.max[g] - max));
      total.max[g] = max;
      total.sum[g] = before * total.sum[g] + added * part.sum[g];
#pragma omp simd
      for (int64_t d = g * head_dim; d < (g + 1) * head_dim; ++d) {
        total.out[d] = before * total.out[d] + added * part.out[d];
      }
    }
  }
  for (int64_t g = 0; g < group; ++g) {
    const float factor = 1.0f / total.sum[g];
#pragma omp simd
    for (int64_t d = g * head_dim; d < (g + 1) * head_dim; ++d) out[d] = total.out[d] * factor;
  }
}

template <int64_t kHeadDim, class T>
void attend(const DecodeShape& shape, Workspace& workspace, ConstTensorView q,
            ConstTensorView k_cache, ConstTensorView v_cache, ConstTensorView positions,
            ConstTensorView counts, float scale, TensorView out) {
  const auto [kv_heads, group, max_len, head_dim] = shape;
  const int64_t batch = q.dim(0), rows = batch * kv_heads, head_size = max_len * head_dim;
  const int32_t* count_of = counts.data<int32_t>();
  const int64_t tasks = (*std::max_element(count_of, count_of + batch) + kTaskKeys - 1) / kTaskKeys;
  const int64_t partial_size = Partial::floats(group, head_dim);
  WorkspaceScope scope(workspace);
  TensorView partials = workspace.take({rows, tasks, partial_size}, DType::f32);
  TensorView scratch =
      workspace.take({omp_get_max_threads(), group * (head_dim + kBlock)}, DType::f32);
#pragma omp parallel
  {
    float* mine = scratch.data<float>() + omp_get_thread_num() * scratch.dim(1);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < rows * tasks; ++item) {
      const int64_t row = item / tasks, first = item % tasks * kTaskKeys;
      const int64_t count = std::min<int64_t>(kTaskKeys, count_of[row / kv_heads] - first);
      if (count <= 0) continue;
      const int32_t* list =
          positions ? positions.data<int32_t>() + row * positions.dim(2) + first : nullptr;
      const CachedRows<T> cached = {k_cache.data<T>() + row * head_size,
                                    v_cache.data<T>() + row * head_size, list, first};
      attend_task<kHeadDim>(shape, cached, count, q.data<T>() + row * group * head_dim, scale, mine,
                            Partial(partials.data<float>() + item * partial_size, group, head_dim));
    }
#pragma omp for
    for (int64_t row = 0; row < rows; ++row) {
      combine(partials.data<float>() + row * tasks * partial_size,
              (count_of[row / kv_heads] + kTaskKeys - 1) / kTaskKeys, group, head_dim, scale,
              out.data<T>() + row * group * head_dim);
    }
  }
}

}  // namespace

void attend_cached(Workspace& workspace, ConstTensorView q, ConstTensorView k_cache,
                   ConstTensorView v_cache, ConstTensorView positions, ConstTensorView counts,
                   float scale, TensorView out) {
  const DecodeShape shape = {k_cache.dim(1), q.dim(1) / k_cache.dim(1), k_cache.dim(2), q.dim(2)};
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    const auto run = [&]<int64_t kHeadDim>() {
      attend<kHeadDim, T>(shape, workspace, q, k_cache, v_cache, positions, counts, scale, out);
    };
    if (shape.head_dim == 64) return run.template operator()<64>();
    if (shape.head_dim == 128) return run.template operator()<128>();
    run.template operator()<0>();
  });
}

}  // namespace switchyard::cpu
