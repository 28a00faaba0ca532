#include "kernels/norm/projection_norm.h"

#include "kernels/cuda/add_partials.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kWarps = 8;

// Where the channels of a token's heads stand in [batch, heads, seq_len, head_dim].
struct Heads {
  int64_t tokens, heads, seq_len, head_dim;

  __device__ int64_t begin(int64_t token, int64_t head) const {
    return ((token / seq_len * heads + head) * seq_len + token % seq_len) * head_dim;
  }
};

Heads heads_of(ConstTensorView x) { return {x.dim(0) * x.dim(2), x.dim(1), x.dim(2), x.dim(3)}; }

__device__ float rstd_of(float squares, int64_t width, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
}

// A warp sums over the heads of a token.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    sums_kernel(const T* a, const T* b, const float* weight, Heads of, float* sums) {
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (token >= of.tokens) return;
  float total = 0.0f;
  for (int64_t h = 0; h < of.heads; ++h) {
    const int64_t begin = of.begin(token, h);
    for (int64_t i = threadIdx.x; i < of.head_dim; i += kWarpSize) {
      const float w = weight ? weight[h * of.head_dim + i] : 1.0f;
      total += static_cast<float>(a[begin + i]) * static_cast<float>(b[begin + i]) * w;
    }
  }
  total = warp_sum(total);
  if (threadIdx.x == 0) sums[token] = total;
}

// A warp normalises a head of a token.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    forward_kernel(const T* x, const float* squares, const float* weight, int64_t width, float eps,
                   Heads of, T* y) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (row >= of.tokens * of.heads) return;
  const int64_t token = row / of.heads, head = row % of.heads, begin = of.begin(token, head);
  const float r = rstd_of(squares[token], width, eps);
  for (int64_t i = threadIdx.x; i < of.head_dim; i += kWarpSize) {
    y[begin + i] =
        from_float<T>(static_cast<float>(x[begin + i]) * r * weight[head * of.head_dim + i]);
  }
}

// A block has 32 channels of some tokens; threads with the same threadIdx.x share a channel. With
// n = x * rstd:  dx = rstd * (dy * weight - n * mean(dy * weight * n)),  and
// partial[blockIdx.y] = sum of dy * n over the block's tokens.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    backward_kernel(const T* dy, const T* x, const float* squares, const float* dots,
                    const float* weight, int64_t width, float eps, Heads of, T* dx,
                    float* partial) {
  __shared__ float sums[kWarps][kWarpSize];
  const int64_t columns = of.heads * of.head_dim;
  const int64_t column = int64_t{blockIdx.x} * kWarpSize + threadIdx.x;
  const bool active = column < columns;
  const int64_t first = int64_t{blockIdx.y} * kProjectionNormTokens;
  const int64_t end = min(of.tokens, first + kProjectionNormTokens);
  const float w = active ? weight[column] : 0.0f;
  float total = 0.0f;
  for (int64_t token = first + threadIdx.y; active && token < end; token += kWarps) {
    const int64_t at = of.begin(token, column / of.head_dim) + column % of.head_dim;
    const float r = rstd_of(squares[token], width, eps);
    const float mean = dots[token] * r / static_cast<float>(width);
    const float n = static_cast<float>(x[at]) * r, d = static_cast<float>(dy[at]);
    dx[at] = from_float<T>(r * (d * w - n * mean));
    total += d * n;
  }
  sums[threadIdx.y][threadIdx.x] = total;
  __syncthreads();  // every warp's sums are visible below
  if (threadIdx.y != 0 || !active) return;
  for (int warp = 1; warp < kWarps; ++warp) total += sums[warp][threadIdx.x];
  partial[blockIdx.y * columns + column] = total;
}

const dim3 kBlock(kWarpSize, kWarps);

}  // namespace

void cuda::projection_sums(Stream& stream, ConstTensorView a, ConstTensorView b,
                           ConstTensorView weight, TensorView sums) {
  const Heads of = heads_of(a);
  dispatch_compute_dtype(a.dtype(), [&]<class T>() {
    launch(sums_kernel<T>, num_blocks(of.tokens, kWarps), kBlock, 0, stream, a.data<T>(),
           b.data<T>(), weight ? weight.data<float>() : nullptr, of, sums.data<float>());
  });
}

void cuda::projection_norm_forward(Stream& stream, ConstTensorView x, ConstTensorView squares,
                                   ConstTensorView weight, int64_t width, float eps, TensorView y) {
  const Heads of = heads_of(x);
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    launch(forward_kernel<T>, num_blocks(of.tokens * of.heads, kWarps), kBlock, 0, stream,
           x.data<T>(), squares.data<float>(), weight.data<float>(), width, eps, of, y.data<T>());
  });
}

void cuda::projection_norm_backward(Stream& stream, Workspace& workspace, ConstTensorView dy,
                                    ConstTensorView x, ConstTensorView squares,
                                    ConstTensorView dots, ConstTensorView weight, int64_t width,
                                    float eps, TensorView dx, TensorView dweight) {
  const Heads of = heads_of(x);
  WorkspaceScope scope(workspace);
  const TensorView partial = projection_norm_scratch(workspace, of.tokens, weight.dim(0));
  const auto chunks = static_cast<unsigned int>(partial.dim(0));
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    launch(backward_kernel<T>, dim3(num_blocks(weight.dim(0), kWarpSize), chunks), kBlock, 0,
           stream, dy.data<T>(), x.data<T>(), squares.data<float>(), dots.data<float>(),
           weight.data<float>(), width, eps, of, dx.data<T>(), partial.data<float>());
  });
  add_partials(stream, partial.data<float>(), chunks, weight.dim(0), dweight.data<float>(),
               nullptr);
}

}  // namespace switchyard
