#include "kernels/attention/rope.h"

#include <algorithm>

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/device_position.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;
constexpr int kPerThread = 8;

// A thread rotates kSize neighbours of the first half of the channels that turn with their partners
// of the second half, or copies kSize channels that do not turn.
struct HeadShape {
  int head_dim, half;      // half of the channels that turn; 0: no rotation
  int turning, remaining;  // pieces of kSize of that half, and of the channels that do not turn

  __host__ __device__ int pieces() const { return turning + remaining; }
};

HeadShape head_shape(int64_t head_dim, int64_t half, int size) {
  return {static_cast<int>(head_dim), static_cast<int>(half), static_cast<int>(half / size),
          static_cast<int>((head_dim - 2 * half) / size)};
}

template <int kSize, class T>
__device__ void copy(const T* x, T* y) {
  float values[kSize];
  load_floats<kSize>(x, values);
  store_floats<kSize>(y, values);
}

// sign = -1 rotates back; without tables the pair is copied. y may be x.
template <int kSize, class T>
__device__ void rotate(const T* x, const float* cos, const float* sin, float sign, int i,
                       const HeadShape& shape, T* y) {
  float x1[kSize], x2[kSize];
  load_floats<kSize>(x + i, x1);
  load_floats<kSize>(x + shape.half + i, x2);
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
  store_floats<kSize>(y + shape.half + i, x2);
}

// The fused projection and its parts; the forward pass splits, the backward pass joins.
template <class T>
struct Split {
  T *qkv, *q, *k, *v;
  const float *cos, *sin;  // null: no rotation
  int heads, kv_heads;
  int64_t seq_len;
  DevicePosition first_position;
  HeadShape shape;

  // The address of head h of the projection after the split.
  __device__ T* part(int64_t b, int h, int64_t t) const {
    if (h < heads) return q + ((b * heads + h) * seq_len + t) * shape.head_dim;
    h -= heads;
    if (h < kv_heads) return k + ((b * kv_heads + h) * seq_len + t) * shape.head_dim;
    return v + ((b * kv_heads + h - kv_heads) * seq_len + t) * shape.head_dim;
  }
};

// Block (t, b) works on token t of sequence b, which is one row of the projection.
template <bool kForward, int kSize, class T>
__global__ void __launch_bounds__(kThreads) split_qkv_kernel(Split<T> s) {
  const int all_heads = s.heads + 2 * s.kv_heads;
  const int64_t t = blockIdx.x, b = blockIdx.y;
  T* row = s.qkv + (b * s.seq_len + t) * all_heads * s.shape.head_dim;
  const int64_t table = (s.first_position.value() + t) * s.shape.half;
  const int pieces = s.shape.pieces();
  for (int i = static_cast<int>(threadIdx.x); i < all_heads * pieces; i += blockDim.x) {
    const int head = i / pieces, piece = i % pieces;
    T* fused = row + head * s.shape.head_dim;
    T* part = s.part(b, head, t);
    const T* from = kForward ? fused : part;
    T* to = kForward ? part : fused;
    if (piece < s.shape.turning) {
      const bool rotated = head < s.heads + s.kv_heads;
      rotate<kSize>(from, rotated ? s.cos + table : nullptr, s.sin + table, kForward ? 1.0f : -1.0f,
                    piece * kSize, s.shape, to);
    } else {
      const int still = 2 * s.shape.half + (piece - s.shape.turning) * kSize;
      copy<kSize>(from + still, to + still);
    }
  }
}

// `blocks` blocks work on the positions of a head, one head of a sequence after the other: only
// blockIdx.x may be greater than 65,535. What does not turn stays where it is.
template <int kSize, class T>
__global__ void __launch_bounds__(kThreads)
    rope_in_place_kernel(const float* cos, const float* sin, DevicePosition first_position,
                         float sign, int seq_len, unsigned int blocks, HeadShape shape, T* x) {
  const int i = static_cast<int>(blockIdx.x % blocks * kThreads + threadIdx.x);
  const int t = i / shape.turning, piece = i % shape.turning;
  if (t >= seq_len) return;
  const int64_t table = (first_position.value() + t) * shape.half;
  T* row = x + (int64_t{blockIdx.x / blocks} * seq_len + t) * shape.head_dim;
  rotate<kSize>(row, cos + table, sin + table, sign, piece * kSize, shape, row);
}

unsigned int as_extent(int64_t n) { return static_cast<unsigned int>(n); }

bool allow_wide(int64_t head_dim, int64_t half) {
  return head_dim % kPerThread == 0 && half % kPerThread == 0;
}

template <bool kForward>
void split_or_join(Stream& stream, TensorView qkv, TensorView q, TensorView k, TensorView v,
                   ConstTensorView cos, ConstTensorView sin, const FirstPosition& first_position) {
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    const int64_t half = cos ? cos.dim(1) : 0;
    const bool wide =
        allow_wide(q.dim(3), half) && allow_vectors(qkv.raw(), q.raw(), k.raw(), v.raw());
    const Split<T> split{.qkv = qkv.data<T>(),
                         .q = q.data<T>(),
                         .k = k.data<T>(),
                         .v = v.data<T>(),
                         .cos = cos ? cos.data<float>() : nullptr,
                         .sin = cos ? sin.data<float>() : nullptr,
                         .heads = static_cast<int>(q.dim(1)),
                         .kv_heads = static_cast<int>(k.dim(1)),
                         .seq_len = q.dim(2),
                         .first_position = DevicePosition(first_position),
                         .shape = head_shape(q.dim(3), half, wide ? kPerThread : 1)};
    const int items = (split.heads + 2 * split.kv_heads) * split.shape.pieces();
    const int threads =
        std::clamp((items + kWarpSize - 1) / kWarpSize * kWarpSize, kWarpSize, kThreads);
    launch(wide ? split_qkv_kernel<kForward, kPerThread, T> : split_qkv_kernel<kForward, 1, T>,
           dim3(as_extent(split.seq_len), as_extent(q.dim(0))), as_extent(threads), 0, stream,
           split);
  });
}

// A writable view of the same memory, for the struct that both directions share. Each direction
// writes only its own outputs.
TensorView writable(ConstTensorView view) {
  return {const_cast<void*>(view.raw()), view.shape(), view.dtype(), view.device()};
}

}  // namespace

void cuda::split_qkv_forward(Stream& stream, ConstTensorView qkv, ConstTensorView cos,
                             ConstTensorView sin, const FirstPosition& first_position, TensorView q,
                             TensorView k, TensorView v) {
  split_or_join<true>(stream, writable(qkv), q, k, v, cos, sin, first_position);
}

void cuda::split_qkv_backward(Stream& stream, ConstTensorView dq, ConstTensorView dk,
                              ConstTensorView dv, ConstTensorView cos, ConstTensorView sin,
                              TensorView dqkv) {
  split_or_join<false>(stream, dqkv, writable(dq), writable(dk), writable(dv), cos, sin, 0);
}

void cuda::rope_in_place(Stream& stream, ConstTensorView cos, ConstTensorView sin,
                         const FirstPosition& first_position, bool inverse, TensorView x) {
  const int64_t head_dim = x.dim(3), half = cos.dim(1);
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    T* values = x.data<T>();
    const bool wide = allow_wide(head_dim, half) && allow_vectors(values);
    const HeadShape shape = head_shape(head_dim, half, wide ? kPerThread : 1);
    const unsigned int blocks = num_blocks(x.dim(2) * shape.turning, kThreads);
    launch(wide ? rope_in_place_kernel<kPerThread, T> : rope_in_place_kernel<1, T>,
           as_extent(x.dim(0) * x.dim(1)) * blocks, kThreads, 0, stream, cos.data<float>(),
           sin.data<float>(), DevicePosition(first_position), inverse ? -1.0f : 1.0f,
           static_cast<int>(x.dim(2)), blocks, shape, values);
  });
}

}  // namespace switchyard
