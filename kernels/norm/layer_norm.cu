#include "kernels/norm/layer_norm.h"

#include "kernels/cuda/norm_rows.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

// If delta is null, x itself is normalised, and sum is not written. sum may be x or delta.
template <class T, int kVec, int kSteps>
__global__ void __launch_bounds__(kMaxRowThreads)
    forward_kernel(const T* x, const T* delta, const float* weight, const float* bias, float eps,
                   int64_t rows, int width, T* sum, T* y, float* mean, float* rstd) {
  __shared__ float scratch[2][kMaxRowWarps];
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int64_t begin = row * width;
  const bool active = row < rows;
  float v[kSteps][kVec];
  float total[1] = {0.0f};
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
    for (int i = 0; i < kVec; ++i) total[0] += v[s][i];
  }
  row_sums(total, scratch[0]);
  const float centre = total[0] / static_cast<float>(width);
  // The centred values are squared: sums of uncentred squares would cancel if the mean is large.
  float squares[1] = {0.0f};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    if (!active || row_column<kVec>(s) >= width) continue;
#pragma unroll
    for (int i = 0; i < kVec; ++i) squares[0] += (v[s][i] - centre) * (v[s][i] - centre);
  }
  row_sums(squares, scratch[1]);
  if (!active) return;
  const float r = 1.0f / sqrtf(squares[0] / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) {
    mean[row] = centre;
    rstd[row] = r;
  }
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int column = row_column<kVec>(s);
    if (column >= width) continue;
    float w[kVec], b[kVec];
    load_floats<kVec>(weight + column, w);
    load_floats<kVec>(bias + column, b);
#pragma unroll
    for (int i = 0; i < kVec; ++i) v[s][i] = (v[s][i] - centre) * r * w[i] + b[i];
    store_floats<kVec>(y + begin + column, v[s]);
  }
}

// With g = dy * weight and n = (x - mean) * rstd:
//   dx += rstd * (g - mean(g) - n * mean(g * n)),  and
//   partial[block] = sums of dy * n, then of dy, over the block's rows.
template <class T, int kVec, int kSteps>
__global__ void __launch_bounds__(kMaxRowThreads)
    backward_kernel(const T* dy, const T* x, const float* weight, const float* mean,
                    const float* rstd, int64_t rows, int width, T* dx, float* partial) {
  __shared__ float scratch[2][2 * kMaxRowWarps];
  float dweight[kSteps][kVec] = {}, dbias[kSteps][kVec] = {};
  const int64_t stride = int64_t{gridDim.x} * blockDim.y;
  int turn = 0;
  // All threads of the block run the same number of iterations, because row_sums has barriers.
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < rows; first += stride, turn ^= 1) {
    const int64_t row = first + threadIdx.y;
    const int64_t begin = row * width;
    const bool active = row < rows;
    const float centre = active ? mean[row] : 0.0f, r = active ? rstd[row] : 0.0f;
    RowPart<T, kVec, kSteps, fits_registers<T, kVec, kSteps>(2, 2)> dy_part, x_part;
    RowPart<T, kVec, kSteps, fits_registers<T, kVec, kSteps>(3, 2)> dx_part;
    float sums[2] = {0.0f, 0.0f};  // of g, and of g * n
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
      for (int i = 0; i < kVec; ++i) {
        sums[0] += d[i] * w[i];
        sums[1] += d[i] * w[i] * (v[i] - centre) * r;
      }
    }
    row_sums(sums, scratch[turn]);
    if (!active) continue;
    const float mean_g = sums[0] / static_cast<float>(width);
    const float mean_gn = sums[1] / static_cast<float>(width);
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
        const float n = (v[i] - centre) * r;
        out[i] += r * (d[i] * w[i] - mean_g - n * mean_gn);
        dweight[s][i] += d[i] * n;
        dbias[s][i] += d[i];
      }
      store_floats<kVec>(dx + at, out);
    }
  }
  float* mine = partial + int64_t{blockIdx.x} * 2 * width;
  float* shared = dynamic_shared<float>();
  store_column_sums(dweight, width, shared, mine);
  __syncthreads();  // the shared sums have been read
  store_column_sums(dbias, width, shared, mine + width);
}

}  // namespace

void cuda::layer_norm_forward(Stream& stream, ConstTensorView x, ConstTensorView delta,
                              ConstTensorView weight, ConstTensorView bias, float eps,
                              TensorView sum, TensorView y, TensorView mean, TensorView rstd) {
  const int64_t tokens = x.dim(0), hidden = x.dim(1);
  const bool vectors = allow_vectors(x.raw(), delta.raw(), weight.raw(), bias.raw(),
                                     delta ? sum.raw() : nullptr, y.raw());
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    dispatch_row<T>(hidden, vectors, [&]<int kVec, int kSteps>() {
      const RowBlock block = row_block(hidden, kVec, kSteps);
      launch(forward_kernel<T, kVec, kSteps>, num_blocks(tokens, block.y), dim3(block.x, block.y),
             0, stream, x.data<T>(), delta ? delta.data<T>() : nullptr, weight.data<float>(),
             bias.data<float>(), eps, tokens, static_cast<int>(hidden),
             delta ? sum.data<T>() : nullptr, y.data<T>(), mean.data<float>(), rstd.data<float>());
    });
  });
}

void cuda::layer_norm_backward(Stream& stream, Workspace& workspace, ConstTensorView dy,
                               ConstTensorView x, ConstTensorView weight, ConstTensorView mean,
                               ConstTensorView rstd, TensorView dx, TensorView dweight,
                               TensorView dbias) {
  const int64_t tokens = x.dim(0), hidden = x.dim(1);
  const bool vectors = norm_backward_vectors(dy, x, weight, dx);
  WorkspaceScope scope(workspace);
  const TensorView partial =
      norm_backward_scratch(workspace, stream.device(), x, vectors, 2 * hidden);
  const auto blocks = static_cast<unsigned int>(partial.dim(0));
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    dispatch_row<T>(hidden, vectors, [&]<int kVec, int kSteps>() {
      const RowBlock block = row_block(hidden, kVec, kSteps);
      launch(backward_kernel<T, kVec, kSteps>, blocks, dim3(block.x, block.y),
             column_sums_shared(hidden, block), stream, dy.data<T>(), x.data<T>(),
             weight.data<float>(), mean.data<float>(), rstd.data<float>(), tokens,
             static_cast<int>(hidden), dx.data<T>(), partial.data<float>());
      add_partials(stream, partial.data<float>(), blocks, hidden, dweight.data<float>(),
                   dbias.data<float>());
    });
  });
}

}  // namespace switchyard
