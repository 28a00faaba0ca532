#include "kernels/norm/layer_norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/row_sums.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

// Sums of both gradients. accumulate_over_rows takes its own scratch in addition.
//   [2 hidden] f32
TensorView backward_scratch(Workspace& workspace, int64_t hidden) {
  return workspace.take({2 * hidden}, DType::f32);
}

}  // namespace

void layer_norm_forward(Stream& stream, ConstTensorView x, ConstTensorView delta,
                        ConstTensorView weight, ConstTensorView bias, float eps, TensorView sum,
                        TensorView y, TensorView mean, TensorView rstd) {
  require(x.rank() == 2, "x has shape {}, expected [tokens, hidden]", x.shape());
  if (delta) {
    require_shape(delta, x.shape(), "delta");
    require_dtype(delta, x.dtype(), "delta");
    require_shape(sum, x.shape(), "sum");
    require_dtype(sum, x.dtype(), "sum");
  }
  require_shape(weight, {x.dim(1)}, "weight");
  require_shape(bias, {x.dim(1)}, "bias");
  require_shape(y, x.shape(), "y");
  require_dtype(y, x.dtype(), "y");
  require_shape(mean, {x.dim(0)}, "mean");
  require_shape(rstd, {x.dim(0)}, "rstd");
  SWITCHYARD_BODY(stream, layer_norm_forward)
  (stream, x, delta, weight, bias, eps, sum, y, mean, rstd);
}

void layer_norm_backward(Stream& stream, Workspace& workspace, ConstTensorView dy,
                         ConstTensorView x, ConstTensorView weight, ConstTensorView mean,
                         ConstTensorView rstd, TensorView dx, TensorView dweight,
                         TensorView dbias) {
  require(x.rank() == 2, "x has shape {}, expected [tokens, hidden]", x.shape());
  require_shape(dy, x.shape(), "dy");
  require_dtype(dy, x.dtype(), "dy");
  require_shape(weight, {x.dim(1)}, "weight");
  require_shape(mean, {x.dim(0)}, "mean");
  require_shape(rstd, {x.dim(0)}, "rstd");
  require_shape(dx, x.shape(), "dx");
  require_dtype(dx, x.dtype(), "dx");
  require_shape(dweight, weight.shape(), "dweight");
  require_shape(dbias, weight.shape(), "dbias");
  const int64_t hidden = x.dim(1);
  count_scratch(
      stream, workspace,
      [&] {
        backward_scratch(workspace, hidden);
        cpu::row_sums_scratch(workspace, x.dim(0), 2 * hidden);
      },
      [&] {
        cuda::norm_backward_scratch(workspace, stream.device(), x,
                                    cuda::norm_backward_vectors(dy, x, weight, dx), 2 * hidden);
      });
  SWITCHYARD_BODY(stream, layer_norm_backward)
  (stream, workspace, dy, x, weight, mean, rstd, dx, dweight, dbias);
}

namespace cpu {
namespace {

struct RowStatistics {
  float mean;
  float rstd;
};

// The variance uses centred values, because a difference of two large sums would cancel.
template <class T>
RowStatistics statistics_of(const T* x, int64_t hidden, float eps) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < hidden; ++i) total += static_cast<float>(x[i]);
  const float mean = total / static_cast<float>(hidden);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < hidden; ++i) {
    const float centred = static_cast<float>(x[i]) - mean;
    squares += centred * centred;
  }
  return {mean, 1.0f / std::sqrt(squares / static_cast<float>(hidden) + eps)};
}

// With g = dy * weight and n = (x - mean) * rstd:
//   dx += rstd * (g - mean(g) - n * mean(g * n)),  dweight += dy * n,  dbias += dy
// `sums` holds dweight, then dbias.
template <class T>
void backward_row(const T* dy, const T* x, const float* weight, RowStatistics row, int64_t hidden,
                  T* dx, float* sums) {
  float sum_g = 0.0f, sum_gn = 0.0f;
#pragma omp simd reduction(+ : sum_g, sum_gn)
  for (int64_t i = 0; i < hidden; ++i) {
    const float g = static_cast<float>(dy[i]) * weight[i];
    sum_g += g;
    sum_gn += g * (static_cast<float>(x[i]) - row.mean) * row.rstd;
  }
  const float mean_g = sum_g / static_cast<float>(hidden);
  const float mean_gn = sum_gn / static_cast<float>(hidden);
#pragma omp simd
  for (int64_t i = 0; i < hidden; ++i) {
    const float n = (static_cast<float>(x[i]) - row.mean) * row.rstd;
    const auto d = static_cast<float>(dy[i]);
    dx[i] = static_cast<float>(dx[i]) + row.rstd * (d * weight[i] - mean_g - n * mean_gn);
    sums[i] += d * n;
    sums[hidden + i] += d;
  }
}

}  // namespace

void layer_norm_forward(Stream&, ConstTensorView x, ConstTensorView delta, ConstTensorView weight,
                        ConstTensorView bias, float eps, TensorView sum, TensorView y,
                        TensorView mean, TensorView rstd) {
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    const int64_t tokens = x.dim(0), hidden = x.dim(1);
    const float *w = weight.data<float>(), *b = bias.data<float>();
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      const T* in = x.data<T>() + t * hidden;
      if (delta) {
        const T* more = delta.data<T>() + t * hidden;
        T* out = sum.data<T>() + t * hidden;
#pragma omp simd
        for (int64_t i = 0; i < hidden; ++i) {
          out[i] = static_cast<float>(in[i]) + static_cast<float>(more[i]);
        }
        in = out;
      }
      const RowStatistics row = statistics_of(in, hidden, eps);
      T* out = y.data<T>() + t * hidden;
#pragma omp simd
      for (int64_t i = 0; i < hidden; ++i) {
        out[i] = (static_cast<float>(in[i]) - row.mean) * row.rstd * w[i] + b[i];
      }
      mean.data<float>()[t] = row.mean;
      rstd.data<float>()[t] = row.rstd;
    }
  });
}

void layer_norm_backward(Stream&, Workspace& workspace, ConstTensorView dy, ConstTensorView x,
                         ConstTensorView weight, ConstTensorView mean, ConstTensorView rstd,
                         TensorView dx, TensorView dweight, TensorView dbias) {
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    const int64_t hidden = x.dim(1);
    WorkspaceScope scope(workspace);
    float* sums = backward_scratch(workspace, hidden).data<float>();
    std::fill_n(sums, 2 * hidden, 0.0f);
    const auto add_row = [&](int64_t t, float* partial) {
      const int64_t at = t * hidden;
      backward_row(dy.data<T>() + at, x.data<T>() + at, weight.data<float>(),
                   {mean.data<float>()[t], rstd.data<float>()[t]}, hidden, dx.data<T>() + at,
                   partial);
    };
    accumulate_over_rows(workspace, x.dim(0), 2 * hidden, sums, add_row);
    for (int64_t i = 0; i < hidden; ++i) {
      dweight.data<float>()[i] += sums[i];
      dbias.data<float>()[i] += sums[hidden + i];
    }
  });
}

}  // namespace cpu
}  // namespace switchyard
