#include "kernels/gather_attention.h"

#include <omp.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/dispatch.h"
#include "kernels/vector_math.h"

namespace switchyard {
namespace {

// Keys between two looks at the running maximum.
constexpr int64_t kBlock = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A row as f32: itself, or widened into scratch.
template <class T>
const float* as_f32(const T* row, int64_t n, float* scratch) {
  if constexpr (std::is_same_v<T, float>) {
    return row;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) scratch[i] = row[i];
    return scratch;
  }
}

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// What the running softmax of one group knows so far (FlashAttention-2, Dao 2023, algorithm 1).
struct GroupState {
  static int64_t floats(int64_t group, int64_t head_dim) {
    return group * (2 * head_dim + 2 + kBlock) + head_dim;
  }

  GroupState(float* memory, int64_t heads, int64_t width)
      : group(heads),
        head_dim(width),
        q(memory),
        out(q + group * head_dim),
        max(out + group * head_dim),
        sum(max + group),
        weights(sum + group),
        row(weights + group * kBlock) {
    std::fill_n(out, group * head_dim, 0.0f);
    std::fill_n(max, group, -kInfinity);
    std::fill_n(sum, group, 0.0f);
  }

  int64_t group, head_dim;
  float *q, *out;    // [group, head_dim]; out not yet divided by sum
  float *max, *sum;  // [group]
  float* weights;    // [group, kBlock]
  float* row;        // [head_dim], a key or value in f32
};

// Turns the scores of one query into weights; where the maximum rises, what was summed before is
// scaled down.
void softmax_block(float scale, int64_t count, int64_t head_dim, float* weights, float& max,
                   float& sum, float* out) {
  float block_max = max;
  for (int64_t i = 0; i < count; ++i) block_max = std::max(block_max, scale * weights[i]);
  if (block_max > max && max > -kInfinity) {
    const float factor = fast_exp(max - block_max);
    sum *= factor;
#pragma omp simd
    for (int64_t d = 0; d < head_dim; ++d) out[d] *= factor;
  }
  max = block_max;
  float block_sum = 0.0f;
#pragma omp simd reduction(+ : block_sum)
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = fast_exp(scale * weights[i] - block_max);
    block_sum += weights[i];
  }
  sum += block_sum;
}

//   k, v     [max_len, head_dim] of one (sequence, kv head)
//   indices  [count]
template <class T>
void attend_block(const T* k, const T* v, const int32_t* indices, int64_t count, float scale,
                  GroupState& s) {
  const int64_t head_dim = s.head_dim;
  for (int64_t i = 0; i < count; ++i) {
    const float* key = as_f32(k + indices[i] * head_dim, head_dim, s.row);
    for (int64_t g = 0; g < s.group; ++g) {
      s.weights[g * kBlock + i] = dot(s.q + g * head_dim, key, head_dim);
    }
  }
  for (int64_t g = 0; g < s.group; ++g) {
    softmax_block(scale, count, head_dim, s.weights + g * kBlock, s.max[g], s.sum[g],
                  s.out + g * head_dim);
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* value = as_f32(v + indices[i] * head_dim, head_dim, s.row);
    for (int64_t g = 0; g < s.group; ++g) {
      const float weight = s.weights[g * kBlock + i];
      float* out = s.out + g * head_dim;
#pragma omp simd
      for (int64_t d = 0; d < head_dim; ++d) out[d] += weight * value[d];
    }
  }
}

template <class T>
void attend(Workspace& workspace, ConstTensorView q, ConstTensorView k_cache,
            ConstTensorView v_cache, ConstTensorView indices, ConstTensorView counts, float scale,
            TensorView out) {
  const int64_t kv_heads = k_cache.dim(1), head_size = k_cache.dim(2) * k_cache.dim(3);
  const int64_t head_dim = q.dim(2), group = q.dim(1) / kv_heads, stride = indices.dim(2);
  WorkspaceScope scope(workspace);
  TensorView scratch = workspace.take(
      {omp_get_max_threads(), GroupState::floats(group, head_dim)}, DType::f32);
#pragma omp parallel for schedule(dynamic)
  for (int64_t row = 0; row < q.dim(0) * kv_heads; ++row) {
    GroupState state(scratch.data<float>() + omp_get_thread_num() * scratch.dim(1), group,
                     head_dim);
    const T* queries = q.data<T>() + row * group * head_dim;
    for (int64_t i = 0; i < group * head_dim; ++i) state.q[i] = static_cast<float>(queries[i]);
    const int32_t* list = indices.data<int32_t>() + row * stride;
    const int64_t count = counts.data<int32_t>()[row / kv_heads];
    for (int64_t first = 0; first < count; first += kBlock) {
      attend_block(k_cache.data<T>() + row * head_size, v_cache.data<T>() + row * head_size,
                   list + first, std::min(kBlock, count - first), scale, state);
    }
    T* result = out.data<T>() + row * group * head_dim;
    for (int64_t g = 0; g < group; ++g) {
      const float factor = 1.0f / state.sum[g];
      for (int64_t d = 0; d < head_dim; ++d) {
        result[g * head_dim + d] = T(state.out[g * head_dim + d] * factor);
      }
    }
  }
}

void require_indices(ConstTensorView indices, ConstTensorView counts, int64_t max_len) {
  const int64_t heads = indices.dim(1), stride = indices.dim(2);
  for (int64_t b = 0; b < counts.dim(0); ++b) {
    const int32_t count = counts.data<int32_t>()[b];
    require(count >= 1 && count <= stride, "counts[{}] is {}, expected 1 to {}", b, count, stride);
    for (int64_t i = 0; i < heads * count; ++i) {
      const int64_t h = i / count;
      const int32_t index = indices.data<int32_t>()[(b * heads + h) * stride + i % count];
      require(index >= 0 && index < max_len,
              "indices[{}][{}][{}] is {}, expected 0 to {}", b, h, i % count, index, max_len - 1);
    }
  }
}

}  // namespace

void gather_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                      ConstTensorView k_cache, ConstTensorView v_cache, ConstTensorView indices,
                      ConstTensorView counts, float scale, TensorView out) {
  require(q.rank() == 3 && k_cache.rank() == 4 && indices.rank() == 3,
          "q has shape {}, k_cache {} and indices {}, expected three, four and three dimensions",
          to_string(q.shape()), to_string(k_cache.shape()), to_string(indices.shape()));
  const int64_t batch = q.dim(0), heads = q.dim(1), kv_heads = k_cache.dim(1);
  require(kv_heads > 0 && heads % kv_heads == 0, "{} query heads cannot share {} key/value heads",
          heads, kv_heads);
  require_shape(k_cache, {batch, kv_heads, k_cache.dim(2), q.dim(2)}, "k_cache");
  require_dtype(k_cache, q.dtype(), "k_cache");
  require_shape(v_cache, k_cache.shape(), "v_cache");
  require_dtype(v_cache, q.dtype(), "v_cache");
  require_shape(indices, {batch, kv_heads, indices.dim(2)}, "indices");
  require_dtype(indices, DType::i32, "indices");
  require_shape(counts, {batch}, "counts");
  require_dtype(counts, DType::i32, "counts");
  require_shape(out, {batch, heads * q.dim(2)}, "out");
  require_dtype(out, q.dtype(), "out");
  require(scale > 0.0f, "scale is {}, must be positive", scale);
  SWITCHYARD_BODY(stream, gather_attention)
  (stream, workspace, q, k_cache, v_cache, indices, counts, scale, out);
}

void cpu::gather_attention(Stream&, Workspace& workspace, ConstTensorView q,
                           ConstTensorView k_cache, ConstTensorView v_cache,
                           ConstTensorView indices, ConstTensorView counts, float scale,
                           TensorView out) {
  require_indices(indices, counts, k_cache.dim(2));
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    attend<T>(workspace, q, k_cache, v_cache, indices, counts, scale, out);
  });
}

}  // namespace switchyard
