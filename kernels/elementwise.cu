#include "kernels/elementwise.h"

#include "kernels/check.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;

// Elements per thread of kernels that use 16-byte accesses.
constexpr int kPerThread = 8;

// y[i] = f(x[i], y[i]); kSize elements per thread.
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

// One thread per element; rows of y share the bias.
template <class T>
__global__ void add_bias_kernel(const float* bias, T* y, int64_t width, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) y[i] = from_float<T>(static_cast<float>(y[i]) + bias[i % width]);
}

constexpr int kTile = 32;

// A block of 32 x 32 threads sums 32 columns: each row of threads takes every 32nd row of dy, and
// the partial sums are added in the order of the rows of threads.
template <class T>
__global__ void add_bias_backward_kernel(const T* dy, float* dbias, int64_t rows, int64_t width) {
  __shared__ float partial[kTile][kTile];
  const int64_t column = int64_t{blockIdx.x} * kTile + threadIdx.x;
  float total = 0.0f;
  if (column < width) {
    for (int64_t row = threadIdx.y; row < rows; row += kTile) {
      total += static_cast<float>(dy[row * width + column]);
    }
  }
  partial[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int r = 1; r < kTile; ++r) total += partial[r][threadIdx.x];
  dbias[column] += total;
}

// Blocks and their shares depend on n alone, so that a sum is the same on every device.
constexpr int64_t kSumBlocks = 1024;

template <bool kSquares>
__global__ void partial_sums_kernel(const float* x, int64_t n, int64_t share, double* partial) {
  __shared__ double scratch[kWarpSize];
  const int64_t begin = blockIdx.x * share, end = min(n, begin + share);
  double total = 0.0;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const double value = x[i];
    total += kSquares ? value * value : value;
  }
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// The partial sums again in a fixed order; one block.
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
  const int64_t share = (n + kSumBlocks - 1) / kSumBlocks;
  const int64_t blocks = (n + share - 1) / share;
  auto* partial =
      static_cast<double*>(reduction_scratch(stream, static_cast<size_t>(blocks) * sizeof(double)));
  launch(partial_sums_kernel<kSquares>, static_cast<unsigned int>(blocks), kThreads, 0, stream,
         x.data<float>(), n, share, partial);
  launch(add_partial_sums_kernel, 1, kThreads, 0, stream, partial, blocks, factor,
         total.data<double>());
}

// One thread per column: the rows are few (sequences).
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

void cuda::copy(Stream& stream, ConstTensorView x, TensorView y) {
  check_cuda(
      cudaMemcpyAsync(y.raw(), x.raw(), y.num_bytes(), cudaMemcpyDefault, native_stream(stream)),
      "cudaMemcpyAsync");
}

void cuda::add(Stream& stream, ConstTensorView x, TensorView y) {
  map_dtypes(stream, x, y, AddUp{});
}

void cuda::fill_zero(Stream& stream, TensorView y) {
  check_cuda(cudaMemsetAsync(y.raw(), 0, y.num_bytes(), native_stream(stream)), "cudaMemsetAsync");
}

void cuda::scale(Stream& stream, float factor, TensorView y) {
  map(stream, y.data<float>(), y.data<float>(), y.num_elements(), Multiply{factor});
}

void cuda::add_bias(Stream& stream, ConstTensorView bias, TensorView y) {
  dispatch_compute_dtype(y.dtype(), [&]<class T>() {
    launch(add_bias_kernel<T>, num_blocks(y.num_elements(), kThreads), kThreads, 0, stream,
           bias.data<float>(), y.data<T>(), y.dim(1), y.num_elements());
  });
}

void cuda::add_bias_backward(Stream& stream, ConstTensorView dy, TensorView dbias) {
  dispatch_compute_dtype(dy.dtype(), [&]<class T>() {
    launch(add_bias_backward_kernel<T>, num_blocks(dy.dim(1), kTile), dim3(kTile, kTile), 0, stream,
           dy.data<T>(), dbias.data<float>(), dy.dim(0), dy.dim(1));
  });
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
