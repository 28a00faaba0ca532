#include "kernels/rope.h"

#include "kernels/check.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;
constexpr int kPerThread = 8;

// A thread turns kSize neighbours of the first half of a head with their partners of the second.
// Heads of odd width are never rotated: their first half is the longer one.
struct HeadShape {
  int64_t head_dim, half, pieces;  // pieces of kSize per half
};

HeadShape head_shape(int64_t head_dim, int size) {
  const int64_t half = (head_dim + 1) / 2;
  return {head_dim, half, half / size};
}

// sign = -1 rotates back; without tables it copies. y may be x.
template <int kSize, class T>
__device__ void rotate(const T* x, const float* cos, const float* sin, float sign, int64_t i,
                       const HeadShape& shape, T* y) {
  const bool has_partner = shape.half + i < shape.head_dim;
  float x1[kSize], x2[kSize] = {};
  load_floats<kSize>(x + i, x1);
  if (has_partner) load_floats<kSize>(x + shape.half + i, x2);
  if (cos) {
    float c[kSize], s[kSize];
    load_floats<kSize>(cos + i, c);
    load_floats<kSize>(sin + i, s);
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const float first = x1[j];
      x1[j] = first * c[j] - x2[j] * (sign * s[j]);
      x2[j] = x2[j] * c[j] + first * (sign * s[j]);
    }
  }
  store_floats<kSize>(y + i, x1);
  if (has_partner) store_floats<kSize>(y + shape.half + i, x2);
}

// The fused projection and its parts; forward splits, backward joins.
template <class T>
struct Split {
  T *qkv, *q, *k, *v;
  const float *cos, *sin;  // null: no rotation
  int64_t heads, kv_heads, seq_len, first_position, tokens;
  HeadShape shape;

  // Where head h of the projection lives after the split.
  __device__ T* part(int64_t b, int64_t h, int64_t t) const {
    if (h < heads) return q + ((b * heads + h) * seq_len + t) * shape.head_dim;
    h -= heads;
    if (h < kv_heads) return k + ((b * kv_heads + h) * seq_len + t) * shape.head_dim;
    return v + ((b * kv_heads + h - kv_heads) * seq_len + t) * shape.head_dim;
  }
};

template <bool kForward, int kSize, class T>
__global__ void split_qkv_kernel(Split<T> s) {
  const int64_t all_heads = s.heads + 2 * s.kv_heads;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= s.tokens * all_heads * s.shape.pieces) return;
  const int64_t piece = i % s.shape.pieces, head = i / s.shape.pieces % all_heads;
  const int64_t token = i / (s.shape.pieces * all_heads);
  const int64_t b = token / s.seq_len, t = token % s.seq_len;
  T* fused = s.qkv + (token * all_heads + head) * s.shape.head_dim;
  T* part = s.part(b, head, t);
  const bool rotated = s.cos && head < s.heads + s.kv_heads;
  const int64_t table = (s.first_position + t) * s.shape.half;
  rotate<kSize>(kForward ? fused : part, rotated ? s.cos + table : nullptr, s.sin + table,
                kForward ? 1.0f : -1.0f, piece * kSize, s.shape, kForward ? part : fused);
}

template <int kSize, class T>
__global__ void rope_in_place_kernel(const float* cos, const float* sin, int64_t first_position,
                                     float sign, int64_t rows, int64_t seq_len, HeadShape shape,
                                     T* x) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t row = i / shape.pieces;
  if (row >= rows) return;
  const int64_t table = (first_position + row % seq_len) * shape.half;
  T* head = x + row * shape.head_dim;
  rotate<kSize>(head, cos + table, sin + table, sign, i % shape.pieces * kSize, shape, head);
}

bool allow_wide(int64_t head_dim) { return head_dim % (2 * kPerThread) == 0; }

template <bool kForward>
void split_or_join(Stream& stream, TensorView qkv, TensorView q, TensorView k, TensorView v,
                   ConstTensorView cos, ConstTensorView sin, int64_t first_position) {
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    const bool wide = allow_wide(q.dim(3)) && allow_vectors(qkv.raw(), q.raw(), k.raw(), v.raw());
    const Split<T> split{.qkv = qkv.data<T>(),
                         .q = q.data<T>(),
                         .k = k.data<T>(),
                         .v = v.data<T>(),
                         .cos = cos ? cos.data<float>() : nullptr,
                         .sin = cos ? sin.data<float>() : nullptr,
                         .heads = q.dim(1),
                         .kv_heads = k.dim(1),
                         .seq_len = q.dim(2),
                         .first_position = first_position,
                         .tokens = qkv.dim(0),
                         .shape = head_shape(q.dim(3), wide ? kPerThread : 1)};
    const int64_t threads = split.tokens * (split.heads + 2 * split.kv_heads) * split.shape.pieces;
    launch(wide ? split_qkv_kernel<kForward, kPerThread, T> : split_qkv_kernel<kForward, 1, T>,
           num_blocks(threads, kThreads), kThreads, 0, stream, split);
  });
}

// The same memory, for kernels that take one struct for both directions and write one side of it.
TensorView writable(ConstTensorView view) {
  return {const_cast<void*>(view.raw()), view.shape(), view.dtype(), view.device()};
}

}  // namespace

void cuda::split_qkv_forward(Stream& stream, ConstTensorView qkv, ConstTensorView cos,
                             ConstTensorView sin, int64_t first_position, TensorView q,
                             TensorView k, TensorView v) {
  split_or_join<true>(stream, writable(qkv), q, k, v, cos, sin, first_position);
}

void cuda::split_qkv_backward(Stream& stream, ConstTensorView dq, ConstTensorView dk,
                              ConstTensorView dv, ConstTensorView cos, ConstTensorView sin,
                              TensorView dqkv) {
  split_or_join<false>(stream, dqkv, writable(dq), writable(dk), writable(dv), cos, sin, 0);
}

void cuda::rope_in_place(Stream& stream, ConstTensorView cos, ConstTensorView sin,
                         int64_t first_position, bool inverse, TensorView x) {
  const int64_t rows = x.dim(0) * x.dim(1) * x.dim(2), head_dim = x.dim(3);
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    T* values = x.data<T>();
    const bool wide = allow_wide(head_dim) && allow_vectors(values);
    const HeadShape shape = head_shape(head_dim, wide ? kPerThread : 1);
    launch(wide ? rope_in_place_kernel<kPerThread, T> : rope_in_place_kernel<1, T>,
           num_blocks(rows * shape.pieces, kThreads), kThreads, 0, stream, cos.data<float>(),
           sin.data<float>(), first_position, inverse ? -1.0f : 1.0f, rows, x.dim(2), shape,
           values);
  });
}

}  // namespace switchyard
