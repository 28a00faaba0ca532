#include "kernels/decode/attend_cached.h"

#include <omp.h>

#include <algorithm>
#include <limits>

#include "kernels/cpu/simd.h"
#include "kernels/inline/vector_math.h"
#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/integers.h"

namespace switchyard::cpu {
namespace {

// Keys between two updates of the running maximum. Their rows stay in the L1 cache, from which all
// query heads of a group read them.
constexpr int64_t kBlock = 64;
// Keys of one task. Every task has a partial result, and those of a head are combined in order: so
// even few heads give work to all threads, and the sums do not depend on the number of threads.
constexpr int64_t kTaskKeys = 1024;
// Query heads that share a row in registers.
constexpr int kTogether = 4;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The addresses of the keys and values of a block.
template <class T>
struct Block {
  int64_t count = 0;
  const T *k[kBlock], *v[kBlock];
};

// The keys of a task, of one (sequence, kv head).
template <class T>
struct TaskKeys {
  const T *k, *v;            // [max_len, head_dim]
  const int32_t* positions;  // [count]; null: first, first + 1, ...
  const float* log_weights;  // rows of query heads, `weight_stride` apart; null: zero
  int64_t first, count, head_dim, weight_stride;

  // The block of keys from index `begin` on. Entries beyond the last key point to readable rows,
  // because keys are scored a few at a time.
  Block<T> block(int64_t begin) const {
    Block<T> result;
    result.count = std::clamp<int64_t>(count - begin, 0, kBlock);
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t at = std::min(begin + i, count - 1);
      const int64_t position = positions ? positions[at] : first + at;
      result.k[i] = k + position * head_dim;
      result.v[i] = v + position * head_dim;
    }
    return result;
  }
};

// The running softmax (FlashAttention-2, Dao 2023, algorithm 1) of the query heads of one
// (sequence, kv head) over the keys of one task. `out` is not yet divided by `sum`.
struct Partial {
  static int64_t floats(int64_t group, int64_t head_dim) { return group * (head_dim + 2); }

  Partial(float* memory, int64_t group, int64_t head_dim)
      : out(memory), max(memory + group * head_dim), sum(max + group) {}

  float *out, *max, *sum;  // [group, head_dim], [group], [group]
};

// Prefetches the cache line that begins at row[d], if one begins there, so that memory works while
// this thread computes on another row. The line goes to the L2 cache, because the L1 cache cannot
// hold the rows of two blocks and allows fewer outstanding requests.
template <class T>
void prefetch(const T* row, int64_t d) {
  constexpr int64_t kLine = 64 / sizeof(T);
  if (d % kLine == 0) __builtin_prefetch(row + d, /*rw=*/0, /*locality=*/2);
}

// Vectors of sums in registers, for all query heads that share a pass.
constexpr int kSums = static_cast<int>(simd::kLanes);
static_assert(kSums % kTogether == 0);
// Keys that kHeads query heads are multiplied with at a time; it divides kBlock.
constexpr int keys_together(int heads) { return heads == 3 ? kSums / 4 : kSums / heads; }

// scores[g * kBlock + i] = <q[g], keys[i]> for kHeads query heads and keys_together(kHeads) keys.
// Inlined: both kinds of attend_task call it, so that the compiler would not, and attention of four
// query heads per key head would be a tenth slower in the L2 cache.
//   ahead  as many rows as there are keys, to prefetch; or null
template <int kHeads, class T>
[[gnu::always_inline]] inline void score_keys(const float* q, const T* const* keys,
                                              const T* const* ahead, int64_t head_dim,
                                              float* scores) {
  constexpr int kKeys = keys_together(kHeads),
                kAtOnce = kHeads == 3 ? kKeys : std::min(kHeads, kKeys);
  const int64_t whole = head_dim / simd::kLanes * simd::kLanes;
  simd::Floats sums[kSums] = {};
#pragma GCC unroll 16
  for (int first = 0; first < kKeys; first += kAtOnce) {  // a load of q serves kAtOnce keys
    for (int64_t d = 0; d < whole; d += simd::kLanes) {
      simd::Floats x[kHeads];
#pragma GCC unroll 4
      for (int g = 0; g < kHeads; ++g) x[g] = simd::load(q + g * head_dim + d);
#pragma GCC unroll 4
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + j;
        const simd::Floats key = simd::load(keys[i] + d);
        if (ahead) prefetch(ahead[i], d);
#pragma GCC unroll 4
        for (int g = 0; g < kHeads; ++g) sums[g * kKeys + i] += x[g] * key;
      }
    }
  }
  float products[kSums];
  simd::store(simd::sums_of(sums), products);
  for (int g = 0; g < kHeads; ++g) {
    for (int i = 0; i < kKeys; ++i) {
      float product = products[g * kKeys + i];
      for (int64_t d = whole; d < head_dim; ++d) {
        product += q[g * head_dim + d] * static_cast<float>(keys[i][d]);
      }
      scores[g * kBlock + i] = product;
    }
  }
}

// Rows of values that are added per load and store of a sum.
constexpr int kRows = 4;

// out[g] += sum over i of weights[g * kBlock + i] values[i], for kHeads query heads and kRows rows.
// Inlined, as score_keys.
//   ahead  kRows rows to prefetch; or null
template <int kHeads, class T>
[[gnu::always_inline]] inline void add_values(const T* const* values, const T* const* ahead,
                                              const float* weights, int64_t head_dim, float* out) {
  int64_t d = 0;
  for (; d + simd::kLanes <= head_dim; d += simd::kLanes) {
    simd::Floats x[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      x[i] = simd::load(values[i] + d);
      if (ahead) prefetch(ahead[i], d);
    }
#pragma GCC unroll 4
    for (int g = 0; g < kHeads; ++g) {
      simd::Floats sum = simd::load(out + g * head_dim + d);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) sum += weights[g * kBlock + i] * x[i];
      simd::store(sum, out + g * head_dim + d);
    }
  }
  for (; d < head_dim; ++d) {
    for (int g = 0; g < kHeads; ++g) {
      for (int i = 0; i < kRows; ++i) {
        out[g * head_dim + d] += weights[g * kBlock + i] * static_cast<float>(values[i][d]);
      }
    }
  }
}

// Turns the scores of one query head into exp(scale (score - max)), updates max and scales down the
// previous sums. Scores beyond `count` are overwritten. With log weights, all results are zero as
// long as no score is above -infinity.
template <bool kWeighted>
void softmax_block(float scale, int64_t count, int64_t head_dim, float* scores, float& max,
                   float& sum, float* out) {
  std::fill(scores + count, scores + kBlock, -kInfinity);
  simd::Floats best = max;
  for (int64_t i = 0; i < kBlock; i += simd::kLanes) {
    best = std::experimental::max(best, simd::load(scores + i));
  }
  const float block_max = simd::max_of(best);
  if (block_max > max && max > -kInfinity) {
    const float factor = fast_exp(scale * (max - block_max));
    sum *= factor;
#pragma omp simd
    for (int64_t d = 0; d < head_dim; ++d) out[d] *= factor;
  }
  max = block_max;
  const float shift = kWeighted && block_max == -kInfinity ? 0.0f : scale * block_max;
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) scores[i] = fast_exp(scale * scores[i] - shift);
  simd::Floats total = 0.0f;
  for (int64_t i = 0; i < kBlock; i += simd::kLanes) total += simd::load(scores + i);
  sum += simd::sum_of(total);
}

// Calls body.operator()<kHeads>(g) for query heads [g, g + kHeads) that share a pass: first groups
// of four, then the rest.
template <class Body>
void for_heads(int64_t heads, const Body& body) {
  static_assert(kTogether == 4);
  int64_t g = 0;
  for (; g + 4 <= heads; g += 4) body.template operator()<4>(g);
  switch (heads - g) {
    case 3:
      return body.template operator()<3>(g);
    case 2:
      return body.template operator()<2>(g);
    case 1:
      return body.template operator()<1>(g);
    default:
      return;
  }
}

// Instantiated for lists with and without log weights, so that the latter pay nothing for them.
//   scratch  group * (head_dim + kBlock) floats
template <bool kWeighted, class T>
void attend_task(const TaskKeys<T>& keys, int64_t group, const T* q, float scale, float* scratch,
                 Partial partial) {
  const int64_t n = keys.head_dim;
  float *queries = scratch, *scores = scratch + group * n;
  for (int64_t i = 0; i < group * n; ++i) queries[i] = static_cast<float>(q[i]);
  std::fill_n(partial.out, group * n, 0.0f);
  std::fill_n(partial.max, group, -kInfinity);
  std::fill_n(partial.sum, group, 0.0f);
  Block<T> block = keys.block(0);
  for (int64_t begin = 0; begin < keys.count; begin += kBlock) {
    const Block<T> next = keys.block(begin + kBlock);
    for_heads(group, [&]<int kHeads>(int64_t g) {
      for (int64_t i = 0; i < block.count; i += keys_together(kHeads)) {
        score_keys<kHeads>(queries + g * n, block.k + i, g == 0 ? block.v + i : nullptr, n,
                           scores + g * kBlock + i);
      }
    });
    for (int64_t g = 0; kWeighted && g < group; ++g) {
      const float* added = keys.log_weights + g * keys.weight_stride + begin;
      for (int64_t i = 0; i < block.count; ++i) scores[g * kBlock + i] += added[i] / scale;
    }
    for (int64_t g = 0; g < group; ++g) {
      softmax_block<kWeighted>(scale, block.count, n, scores + g * kBlock, partial.max[g],
                               partial.sum[g], partial.out + g * n);
    }
    for_heads(group, [&]<int kHeads>(int64_t g) {
      for (int64_t i = 0; i < block.count; i += kRows) {
        add_values<kHeads>(block.v + i, g == 0 ? next.k + i : nullptr, scores + g * kBlock + i, n,
                           partial.out + g * n);
      }
    });
    block = next;
  }
}

// Combines the results of a head's tasks in the memory of the first one, and writes its quotient to
// `out`.
template <class T>
void combine(float* partials, int64_t tasks, int64_t group, int64_t head_dim, float scale, T* out) {
  Partial total(partials, group, head_dim);
  for (int64_t task = 1; task < tasks; ++task) {
    const Partial part(partials + task * Partial::floats(group, head_dim), group, head_dim);
    for (int64_t g = 0; g < group; ++g) {
      if (part.max[g] == -kInfinity) continue;  // the head leaves all of the task's keys out
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

int64_t num_tasks(int64_t keys) { return (keys + kTaskKeys - 1) / kTaskKeys; }

// The scratch of attend_cached, for lists of up to `tasks` tasks.
struct Scratch {
  Scratch(Workspace& workspace, ConstTensorView q, ConstTensorView k_cache, int64_t tasks) {
    const int64_t kv_heads = k_cache.dim(1), group = q.dim(1) / kv_heads, head_dim = q.dim(2);
    partials =
        workspace.take({q.dim(0) * kv_heads, tasks, Partial::floats(group, head_dim)}, DType::f32);
    of_threads = workspace.take({omp_get_max_threads(), group * (head_dim + kBlock)}, DType::f32);
  }

  TensorView partials;    // [batch * kv_heads, tasks, Partial::floats]
  TensorView of_threads;  // [threads, group * (head_dim + kBlock)]
};

template <class T>
void attend(Workspace& workspace, ConstTensorView q, ConstTensorView k_cache,
            ConstTensorView v_cache, ConstTensorView positions, ConstTensorView counts,
            ConstTensorView log_weights, float scale, TensorView out) {
  const int64_t kv_heads = k_cache.dim(1), max_len = k_cache.dim(2), head_dim = q.dim(2);
  const int64_t batch = q.dim(0), group = q.dim(1) / kv_heads;
  const int64_t rows = batch * kv_heads, head_size = max_len * head_dim;
  const int32_t* count_of = counts.data<int32_t>();
  const int64_t tasks = num_tasks(*std::max_element(count_of, count_of + batch));
  WorkspaceScope scope(workspace);
  const Scratch taken(workspace, q, k_cache, tasks);
  const TensorView partials = taken.partials, scratch = taken.of_threads;
  const int64_t partial_size = partials.dim(2);
#pragma omp parallel
  {
    float* mine = scratch.data<float>() + omp_get_thread_num() * scratch.dim(1);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < rows * tasks; ++item) {
      const int64_t row = item / tasks, first = item % tasks * kTaskKeys;
      const int64_t count = std::min<int64_t>(kTaskKeys, count_of[row / kv_heads] - first);
      if (count <= 0) continue;
      const TaskKeys<T> keys = {
          .k = k_cache.data<T>() + row * head_size,
          .v = v_cache.data<T>() + row * head_size,
          .positions =
              positions ? positions.data<int32_t>() + row * positions.dim(2) + first : nullptr,
          .log_weights = log_weights
                             ? log_weights.data<float>() + row * group * log_weights.dim(2) + first
                             : nullptr,
          .first = first,
          .count = count,
          .head_dim = head_dim,
          .weight_stride = log_weights ? log_weights.dim(2) : 0};
      const T* queries = q.data<T>() + row * group * head_dim;
      const Partial partial(partials.data<float>() + item * partial_size, group, head_dim);
      if (log_weights) {
        attend_task<true>(keys, group, queries, scale, mine, partial);
      } else {
        attend_task<false>(keys, group, queries, scale, mine, partial);
      }
    }
#pragma omp for
    for (int64_t row = 0; row < rows; ++row) {
      combine(partials.data<float>() + row * tasks * partial_size,
              num_tasks(count_of[row / kv_heads]), group, head_dim, scale,
              out.data<T>() + row * group * head_dim);
    }
  }
}

}  // namespace

void count_attend_cached(Workspace& workspace, ConstTensorView q, ConstTensorView k_cache,
                         ConstTensorView positions) {
  Scratch(workspace, q, k_cache, num_tasks(positions ? positions.dim(2) : k_cache.dim(2)));
}

void attend_cached(Stream&, Workspace& workspace, ConstTensorView q, ConstTensorView k_cache,
                   ConstTensorView v_cache, ConstTensorView positions, ConstTensorView counts,
                   ConstTensorView log_weights, float scale, TensorView out) {
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    attend<T>(workspace, q, k_cache, v_cache, positions, counts, log_weights, scale, out);
  });
}

}  // namespace switchyard::cpu
