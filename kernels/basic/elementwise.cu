#include "kernels/basic/elementwise.h"

#include <algorithm>

#include "kernels/cuda/add_partials.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;

// Elements per thread of kernels that use 16-byte accesses.
constexpr int kPerThread = 8;

// y[i] = f(x[i], y[i]), with kSize elements per thread.
template <int kSize, class X, class Y, class F>
__global__ void map_kernel(const X* x, Y* y, int64_t n, F f) {
  const int64_t begin = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kSize;
  if (begin + kSize <= n) {
    float in[kSize], out[kSize];
    load_floats<kSize>(x + begin, in);
    load_floats<kSize>(y + begin, out);
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] = f(in[i], out[i]);
    store_floats<kSize>(y + begin, out);
    return;
  }
  for (int64_t i = begin; i < n; ++i) {
    y[i] = from_float<Y>(f(static_cast<float>(x[i]), static_cast<float>(y[i])));
  }
}

template <class X, class Y, class F>
void map(Stream& stream, const X* x, Y* y, int64_t n, F f) {
  if (allow_vectors(x, y)) {
    launch(map_kernel<kPerThread, X, Y, F>, num_blocks(n, kThreads, kPerThread), kThreads, 0,
           stream, x, y, n, f);
  } else {
    launch(map_kernel<1, X, Y, F>, num_blocks(n, kThreads), kThreads, 0, stream, x, y, n, f);
  }
}

struct TakeX {
  __device__ float operator()(float x, float) const { return x; }
};
struct AddUp {
  __device__ float operator()(float x, float y) const { return x + y; }
};
struct Multiply {
  float factor;
  __device__ float operator()(float x, float) const { return factor * x; }
};

template <class F>
void map_dtypes(Stream& stream, ConstTensorView x, TensorView y, F f) {
  dispatch_compute_dtype(x.dtype(), [&]<class X>() {
    dispatch_compute_dtype(
        y.dtype(), [&]<class Y>() { map(stream, x.data<X>(), y.data<Y>(), y.num_elements(), f); });
  });
}

constexpr int kBiasRows = 16;

// A thread reads kSize elements of the bias once and adds them to kBiasRows rows.
template <int kSize, class T>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(const float* bias, int64_t rows, int64_t width, T* y) {
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kSize;
  if (column >= width) return;
  float b[kSize];
  load_floats<kSize>(bias + column, b);
  const int64_t first = int64_t{blockIdx.x} * kBiasRows, end = min(rows, first + kBiasRows);
#pragma unroll 4
  for (int64_t row = first; row < end; ++row) {
    float values[kSize];
    load_floats<kSize>(y + row * width + column, values);
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] += b[i];
    store_floats<kSize>(y + row * width + column, values);
  }
}

constexpr int kBiasWarps = kThreads / kWarpSize;

// partial[blockIdx.x] = sums over the block's rows, for the columns of blockIdx.y. Each warp takes
// every kBiasWarps-th row, and the warps' sums are added in their order.
template <int kSize, class T>
__global__ void __launch_bounds__(kThreads)
    add_bias_backward_kernel(const T* dy, int64_t rows, int64_t width, float* partial) {
  __shared__ float sums[kBiasWarps][kWarpSize * kSize];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t tile = int64_t{blockIdx.y} * kWarpSize * kSize, column = tile + lane * kSize;
  const int64_t first = int64_t{blockIdx.x} * kBiasGradientRows;
  const int64_t end = min(rows, first + kBiasGradientRows);
  float total[kSize] = {};
  if (column < width) {
#pragma unroll 4
    for (int64_t row = first + warp; row < end; row += kBiasWarps) {
      float values[kSize];
      load_floats<kSize>(dy + row * width + column, values);
#pragma unroll
      for (int i = 0; i < kSize; ++i) total[i] += values[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) sums[warp][lane * kSize + i] = total[i];
  __syncthreads();  // every warp's sums are visible below
  for (int c = static_cast<int>(threadIdx.x); c < kWarpSize * kSize; c += kThreads) {
    if (tile + c >= width) break;
    float sum = 0.0f;
    for (int w = 0; w < kBiasWarps; ++w) sum += sums[w][c];
    partial[blockIdx.x * width + tile + c] = sum;
  }
}

// The number of blocks and their shares depend only on n, so a sum is the same on every device.
constexpr int64_t kSumBlocks = 1024;
constexpr int kSumVector = 4;

template <bool kSquares, int kSize>
__global__ void __launch_bounds__(kThreads)
    partial_sums_kernel(const float* x, int64_t n, int64_t share, double* partial) {
  __shared__ double scratch[kWarpSize];
  const int64_t begin = blockIdx.x * share, end = min(n, begin + share);
  double total = 0.0;
  const auto add = [&](float value) {
    const double v = value;
    total += kSquares ? v * v : v;
  };
  int64_t i = begin + threadIdx.x * kSize;
#pragma unroll 4
  for (; i + kSize <= end; i += kThreads * kSize) {
    float values[kSize];
    load_floats<kSize>(x + i, values);
#pragma unroll
    for (int j = 0; j < kSize; ++j) add(values[j]);
  }
  for (; i < end; ++i) add(x[i]);  // only the thread whose last piece is incomplete
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// One block adds the partial sums, also in a fixed order.
__global__ void add_partial_sums_kernel(const double* partial, int64_t count, double factor,
                                        double* total) {
  __shared__ double scratch[kWarpSize];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *total += factor * sum;
}

template <bool kSquares>
void add_sum_on_device(Stream& stream, ConstTensorView x, double factor, TensorView total) {
  const int64_t n = x.num_elements();
  if (n == 0) return;
  // A share is a multiple of the vector size, so every share begins at a whole vector.
  const int64_t share = (n + kSumBlocks * kSumVector - 1) / (kSumBlocks * kSumVector) * kSumVector;
  const int64_t blocks = (n + share - 1) / share;
  auto* partial =
      static_cast<double*>(reduction_scratch(stream, static_cast<size_t>(blocks) * sizeof(double)));
  const float* values = x.data<float>();
  launch(allow_vectors(values) ? partial_sums_kernel<kSquares, kSumVector>
                               : partial_sums_kernel<kSquares, 1>,
         static_cast<unsigned int>(blocks), kThreads, 0, stream, values, n, share, partial);
  launch(add_partial_sums_kernel, 1, kThreads, 0, stream, partial, blocks, factor,
         total.data<double>());
}

// One thread sums a column, because the rows (sequences) are few.
__global__ void add_column_sums_kernel(const float* x, int64_t rows, int64_t width,
                                       double* totals) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= width) return;
  double total = totals[i];
  for (int64_t r = 0; r < rows; ++r) total += x[r * width + i];
  totals[i] = total;
}

}  // namespace

void cuda::cast(Stream& stream, ConstTensorView x, TensorView y) {
  if (x.dtype() == y.dtype()) return cuda::copy(stream, x, y);
  map_dtypes(stream, x, y, TakeX{});
}

// An empty tensor may have a null address, which the CUDA runtime refuses.
void cuda::copy(Stream& stream, ConstTensorView x, TensorView y) {
  if (y.num_bytes() == 0) return;
  check_cuda(
      cudaMemcpyAsync(y.raw(), x.raw(), y.num_bytes(), cudaMemcpyDefault, native_stream(stream)),
      "cudaMemcpyAsync");
}

void cuda::add(Stream& stream, ConstTensorView x, TensorView y) {
  map_dtypes(stream, x, y, AddUp{});
}

void cuda::fill_zero(Stream& stream, TensorView y) {
  if (y.num_bytes() == 0) return;
  check_cuda(cudaMemsetAsync(y.raw(), 0, y.num_bytes(), native_stream(stream)), "cudaMemsetAsync");
}

void cuda::scale(Stream& stream, float factor, TensorView y) {
  map(stream, y.data<float>(), y.data<float>(), y.num_elements(), Multiply{factor});
}

void cuda::add_bias(Stream& stream, ConstTensorView bias, TensorView y) {
  const int64_t rows = y.dim(0), width = y.dim(1);
  dispatch_compute_dtype(y.dtype(), [&]<class T>() {
    const float* b = bias.data<float>();
    T* values = y.data<T>();
    const bool wide = width % kPerThread == 0 && allow_vectors(b, values);
    const int64_t pieces = wide ? width / kPerThread : width;
    const int64_t threads = std::clamp<int64_t>(pieces, kWarpSize, kThreads);
    launch(wide ? add_bias_kernel<kPerThread, T> : add_bias_kernel<1, T>,
           dim3(num_blocks(rows, kBiasRows), num_blocks(pieces, threads)),
           static_cast<unsigned int>(threads), 0, stream, b, rows, width, values);
  });
}

void cuda::add_bias_backward(Stream& stream, Workspace& workspace, ConstTensorView dy,
                             TensorView dbias) {
  const int64_t rows = dy.dim(0), width = dy.dim(1);
  WorkspaceScope scope(workspace);
  const TensorView sums = add_bias_backward_scratch(workspace, dy);
  float* partial = sums.data<float>();
  const auto blocks = static_cast<unsigned int>(sums.dim(0));
  dispatch_compute_dtype(dy.dtype(), [&]<class T>() {
    constexpr int kSize = 16 / sizeof(T);
    const T* d = dy.data<T>();
    const bool wide = width % kSize == 0 && allow_vectors(d);
    launch(wide ? add_bias_backward_kernel<kSize, T> : add_bias_backward_kernel<1, T>,
           dim3(blocks, num_blocks(width, kWarpSize, wide ? kSize : 1)), kThreads, 0, stream, d,
           rows, width, partial);
  });
  add_partials(stream, partial, blocks, width, dbias.data<float>(), nullptr);
}

void cuda::add_sum(Stream& stream, ConstTensorView x, double factor, TensorView total) {
  add_sum_on_device<false>(stream, x, factor, total);
}

void cuda::add_sum_of_squares(Stream& stream, ConstTensorView x, double factor, TensorView total) {
  add_sum_on_device<true>(stream, x, factor, total);
}

void cuda::add_column_sums(Stream& stream, ConstTensorView x, TensorView totals) {
  launch(add_column_sums_kernel, num_blocks(x.dim(1), kThreads), kThreads, 0, stream,
         x.data<float>(), x.dim(0), x.dim(1), totals.data<double>());
}

}  // namespace switchyard
