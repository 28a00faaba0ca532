#include "kernels/norm/rms_norm.h"

#include "kernels/cuda/norm_rows.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

// If delta is null, x itself is normalised, and sum is not written. sum may be x or delta.
template <class T, int kVec, int kSteps>
__global__ void __launch_bounds__(kMaxRowThreads)
    forward_kernel(const T* x, const T* delta, const float* weight, float eps, int64_t rows,
                   int width, T* sum, T* y, float* rstd) {
  __shared__ float scratch[kMaxRowWarps];
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int64_t begin = row * width;
  const bool active = row < rows;
  float v[kSteps][kVec];
  float squares[1] = {0.0f};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int column = row_column<kVec>(s);
    if (!active || column >= width) continue;
    load_floats<kVec>(x + begin + column, v[s]);
    if (delta) {
      float more[kVec];
      load_floats<kVec>(delta + begin + column, more);
      // The sum is rounded to T before it is normalised: the backward pass reads the rounded sum.
#pragma unroll
      for (int i = 0; i < kVec; ++i) v[s][i] = from_float<T>(v[s][i] + more[i]);
      store_floats<kVec>(sum + begin + column, v[s]);
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) squares[0] += v[s][i] * v[s][i];
  }
  row_sums(squares, scratch);
  if (!active) return;
  const float r = 1.0f / sqrtf(squares[0] / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) rstd[row] = r;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int column = row_column<kVec>(s);
    if (column >= width) continue;
    float w[kVec];
    load_floats<kVec>(weight + column, w);
#pragma unroll
    for (int i = 0; i < kVec; ++i) v[s][i] *= r * w[i];
    store_floats<kVec>(y + begin + column, v[s]);
  }
}

// With g = dy * weight and n = x * rstd:  dx += rstd * (g - n * mean(g * n)),  and
// partial[block] = sum of dy * n over the block's rows.
template <class T, int kVec, int kSteps>
__global__ void __launch_bounds__(kMaxRowThreads)
    backward_kernel(const T* dy, const T* x, const float* weight, const float* rstd, int64_t rows,
                    int width, T* dx, float* partial) {
  __shared__ float scratch[2][kMaxRowWarps];
  float dweight[kSteps][kVec] = {};
  const int64_t stride = int64_t{gridDim.x} * blockDim.y;
  int turn = 0;
  // All threads of the block run the same number of iterations, because row_sums has barriers.
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < rows; first += stride, turn ^= 1) {
    const int64_t row = first + threadIdx.y;
    const int64_t begin = row * width;
    const bool active = row < rows;
    RowPart<T, kVec, kSteps, fits_registers<T, kVec, kSteps>(2, 1)> dy_part, x_part;
    RowPart<T, kVec, kSteps, fits_registers<T, kVec, kSteps>(3, 1)> dx_part;
    float dot[1] = {0.0f};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int column = row_column<kVec>(s);
      if (!active || column >= width) continue;
      const int64_t at = begin + column;
      float d[kVec], v[kVec], w[kVec];
      dy_part.load(s, dy + at);
      x_part.load(s, x + at);
      dx_part.load(s, dx + at);
      dy_part.get(s, dy + at, d);
      x_part.get(s, x + at, v);
      load_floats<kVec>(weight + column, w);
#pragma unroll
      for (int i = 0; i < kVec; ++i) dot[0] += d[i] * w[i] * v[i];
    }
    row_sums(dot, scratch[turn]);
    if (!active) continue;
    const float r = rstd[row];
    const float mean = dot[0] * r / static_cast<float>(width);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int column = row_column<kVec>(s);
      if (column >= width) continue;
      const int64_t at = begin + column;
      float d[kVec], v[kVec], w[kVec], out[kVec];
      dy_part.get(s, dy + at, d);
      x_part.get(s, x + at, v);
      dx_part.get(s, dx + at, out);
      load_floats<kVec>(weight + column, w);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const float n = v[i] * r;
        out[i] += r * (d[i] * w[i] - n * mean);
        dweight[s][i] += d[i] * n;
      }
      store_floats<kVec>(dx + at, out);
    }
  }
  store_column_sums(dweight, width, dynamic_shared<float>(),
                    partial + static_cast<int64_t>(blockIdx.x) * width);
}

}  // namespace

void cuda::rms_norm_forward(Stream& stream, ConstTensorView x, ConstTensorView delta,
                            ConstTensorView weight, float eps, TensorView sum, TensorView y,
                            TensorView rstd) {
  const int64_t tokens = x.dim(0), hidden = x.dim(1);
  const bool vectors =
      allow_vectors(x.raw(), delta.raw(), weight.raw(), delta ? sum.raw() : nullptr, y.raw());
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    dispatch_row<T>(hidden, vectors, [&]<int kVec, int kSteps>() {
      const RowBlock block = row_block(hidden, kVec, kSteps);
      launch(forward_kernel<T, kVec, kSteps>, num_blocks(tokens, block.y), dim3(block.x, block.y),
             0, stream, x.data<T>(), delta ? delta.data<T>() : nullptr, weight.data<float>(), eps,
             tokens, static_cast<int>(hidden), delta ? sum.data<T>() : nullptr, y.data<T>(),
             rstd.data<float>());
    });
  });
}

void cuda::rms_norm_backward(Stream& stream, Workspace& workspace, ConstTensorView dy,
                             ConstTensorView x, ConstTensorView weight, ConstTensorView rstd,
                             TensorView dx, TensorView dweight) {
  const int64_t tokens = x.dim(0), hidden = x.dim(1);
  const bool vectors = norm_backward_vectors(dy, x, weight, dx);
  WorkspaceScope scope(workspace);
  const TensorView partial = norm_backward_scratch(workspace, stream.device(), x, vectors, hidden);
  const auto blocks = static_cast<unsigned int>(partial.dim(0));
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    dispatch_row<T>(hidden, vectors, [&]<int kVec, int kSteps>() {
      const RowBlock block = row_block(hidden, kVec, kSteps);
      launch(backward_kernel<T, kVec, kSteps>, blocks, dim3(block.x, block.y),
             column_sums_shared(hidden, block), stream, dy.data<T>(), x.data<T>(),
             weight.data<float>(), rstd.data<float>(), tokens, static_cast<int>(hidden),
             dx.data<T>(), partial.data<float>());
      add_partials(stream, partial.data<float>(), blocks, hidden, dweight.data<float>(), nullptr);
    });
  });
}

}  // namespace switchyard
