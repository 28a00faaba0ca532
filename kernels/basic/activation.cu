#include "kernels/basic/activation.h"

#include <bit>

#include "kernels/cuda/activation_math.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_sums.h"
#include "kernels/inline/activation_functions.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;
constexpr int kPerThread = 8;

// A row belongs to blockDim.x threads, each of which takes kSize neighbours at a time.
template <class F, bool kGated, int kSize, class T>
__global__ void __launch_bounds__(kThreads)
    activation_forward_kernel(const T* in, const float* row_scale, int64_t rows, int64_t ffn,
                              T* out) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const T* x = in + row * ffn * (kGated ? 2 : 1);
  const float scale = row_scale ? row_scale[row] : 1.0f;
  for (int64_t begin = threadIdx.x * kSize; begin < ffn; begin += blockDim.x * kSize) {
    float a[kSize], up[kSize], y[kSize];
    load_floats<kSize>(x + begin, a);
    if constexpr (kGated) load_floats<kSize>(x + ffn + begin, up);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      y[i] = activated<F, kGated>(a[i], kGated ? up[i] : 0.0f, scale);
    }
    store_floats<kSize>(out + row * ffn + begin, y);
  }
}

// Threads share rows as in the forward kernel; it also computes the row's <dout, activation(in)>.
template <class F, bool kGated, int kSize, class T>
__global__ void __launch_bounds__(kThreads)
    activation_backward_kernel(const T* dout, const T* in, const float* row_scale, int64_t rows,
                               int64_t ffn, T* din, float* drow_scale) {
  __shared__ float scratch[kMaxRowWarps];
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool active = row < rows;  // every thread must reach row_sums
  const int64_t first = row * ffn * (kGated ? 2 : 1);
  const T* x = in + first;
  T* dx = din + first;
  const float scale = active && row_scale ? row_scale[row] : 1.0f;
  float dot[1] = {0.0f};
  for (int64_t begin = threadIdx.x * kSize; active && begin < ffn; begin += blockDim.x * kSize) {
    float a[kSize], up[kSize], d[kSize], da[kSize], dup[kSize];
    load_floats<kSize>(x + begin, a);
    load_floats<kSize>(dout + row * ffn + begin, d);
    if constexpr (kGated) load_floats<kSize>(x + ffn + begin, up);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const auto g = activation_gradient<F, kGated>(d[i], a[i], kGated ? up[i] : 0.0f, scale);
      dot[0] += g.dot;
      da[i] = g.dx;
      dup[i] = g.dup;
    }
    store_floats<kSize>(dx + begin, da);
    if constexpr (kGated) store_floats<kSize>(dx + ffn + begin, dup);
  }
  if (drow_scale == nullptr) return;
  row_sums(dot, scratch);
  if (active && threadIdx.x == 0) drow_scale[row] = dot[0];
}

// A row of an expert's width would occupy a small part of a block, so a block takes several rows.
dim3 row_block(int64_t ffn, int size) {
  const auto pieces = static_cast<unsigned int>(num_blocks(ffn, size));
  const unsigned int threads = std::clamp<unsigned int>(std::bit_ceil(pieces), kWarpSize, kThreads);
  return dim3(threads, kThreads / threads);
}

// Calls body.operator()<kGated, kSize>() for rows of `ffn` elements at these addresses.
template <class Body, class... Pointers>
void dispatch_rows(Activation activation, int64_t ffn, const Body& body,
                   const Pointers*... addresses) {
  const bool wide = ffn % kPerThread == 0 && allow_vectors(addresses...);
  if (is_gated(activation)) {
    wide ? body.template operator()<true, kPerThread>() : body.template operator()<true, 1>();
  } else {
    wide ? body.template operator()<false, kPerThread>() : body.template operator()<false, 1>();
  }
}

}  // namespace

void cuda::activation_forward(Stream& stream, Activation activation, ConstTensorView in,
                              ConstTensorView row_scale, TensorView out) {
  const int64_t rows = out.dim(0);
  const float* scales = row_scale ? row_scale.data<float>() : nullptr;
  dispatch_compute_dtype(in.dtype(), [&]<class T>() {
    const T* x = in.data<T>();
    T* y = out.data<T>();
    dispatch_function(activation, [&]<class F>() {
      dispatch_rows(
          activation, out.dim(1),
          [&]<bool kGated, int kSize>() {
            const dim3 block = row_block(out.dim(1), kSize);
            launch(activation_forward_kernel<typename Precise<F, T>::type, kGated, kSize, T>,
                   num_blocks(rows, block.y), block, 0, stream, x, scales, rows, out.dim(1), y);
          },
          x, y);
    });
  });
}

void cuda::activation_backward(Stream& stream, Activation activation, ConstTensorView dout,
                               ConstTensorView in, ConstTensorView row_scale, TensorView din,
                               TensorView drow_scale) {
  const int64_t rows = dout.dim(0);
  const float* scales = row_scale ? row_scale.data<float>() : nullptr;
  float* dscales = row_scale ? drow_scale.data<float>() : nullptr;
  dispatch_compute_dtype(in.dtype(), [&]<class T>() {
    const T *dy = dout.data<T>(), *x = in.data<T>();
    T* dx = din.data<T>();
    dispatch_function(activation, [&]<class F>() {
      dispatch_rows(
          activation, dout.dim(1),
          [&]<bool kGated, int kSize>() {
            const dim3 block = row_block(dout.dim(1), kSize);
            launch(activation_backward_kernel<typename Precise<F, T>::type, kGated, kSize, T>,
                   num_blocks(rows, block.y), block, 0, stream, dy, x, scales, rows, dout.dim(1),
                   dx, dscales);
          },
          dy, x, dx);
    });
  });
}

}  // namespace switchyard
