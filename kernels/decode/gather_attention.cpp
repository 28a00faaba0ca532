#include "kernels/decode/gather_attention.h"

#include <algorithm>

#include "kernels/cuda/scratch.h"
#include "kernels/decode/attend_cached.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

// The position of the first index outside [0, max_len); `count` if there is none.
int64_t first_outside(const int32_t* indices, int64_t count, int64_t max_len) {
  bool outside = false;
#pragma omp simd reduction(|| : outside)
  for (int64_t i = 0; i < count; ++i) outside = outside || indices[i] < 0 || indices[i] >= max_len;
  if (!outside) return count;
  return std::find_if(indices, indices + count,
                      [&](int32_t index) { return index < 0 || index >= max_len; }) -
         indices;
}

void require_indices(ConstTensorView indices, ConstTensorView counts, int64_t max_len) {
  const int64_t heads = indices.dim(1), stride = indices.dim(2);
  for (int64_t b = 0; b < counts.dim(0); ++b) {
    const int32_t count = counts.data<int32_t>()[b];
    require(count >= 1 && count <= stride, "counts[{}] is {}, expected 1 to {}", b, count, stride);
    for (int64_t h = 0; h < heads; ++h) {
      const int32_t* list = indices.data<int32_t>() + (b * heads + h) * stride;
      const int64_t at = first_outside(list, count, max_len);
      if (at == count) continue;
      fail("indices[{}][{}][{}] is {}, expected 0 to {}", b, h, at, list[at], max_len - 1);
    }
  }
}

}  // namespace

void gather_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                      ConstTensorView k_cache, ConstTensorView v_cache, ConstTensorView indices,
                      ConstTensorView counts, ConstTensorView log_weights, float scale,
                      TensorView out) {
  require(q.rank() == 3 && k_cache.rank() == 4 && indices.rank() == 3,
          "q has shape {}, k_cache {} and indices {}, expected three, four and three dimensions",
          q.shape(), k_cache.shape(), indices.shape());
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
  if (log_weights) {
    require_shape(log_weights, {batch, heads, indices.dim(2)}, "log_weights");
    require_dtype(log_weights, DType::f32, "log_weights");
  }
  require_shape(out, {batch, heads * q.dim(2)}, "out");
  require_dtype(out, q.dtype(), "out");
  require(scale > 0.0f, "scale is {}, must be positive", scale);
  count_scratch(
      stream, workspace, [&] { cpu::count_attend_cached(workspace, q, k_cache, indices); },
      [&] { cuda::attend_cached_scratch(workspace, q, k_cache, indices); });
  SWITCHYARD_BODY(stream, gather_attention)
  (stream, workspace, q, k_cache, v_cache, indices, counts, log_weights, scale, out);
}

void cpu::gather_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                           ConstTensorView k_cache, ConstTensorView v_cache,
                           ConstTensorView indices, ConstTensorView counts,
                           ConstTensorView log_weights, float scale, TensorView out) {
  require_indices(indices, counts, k_cache.dim(2));
  attend_cached(stream, workspace, q, k_cache, v_cache, indices, counts, log_weights, scale, out);
}

}  // namespace switchyard
