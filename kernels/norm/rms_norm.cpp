#include "kernels/norm/rms_norm.h"

#include <cmath>

#include "kernels/cpu/row_sums.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void rms_norm_forward(Stream& stream, ConstTensorView x, ConstTensorView delta,
                      ConstTensorView weight, float eps, TensorView sum, TensorView y,
                      TensorView rstd) {
  require(x.rank() == 2, "x has shape {}, expected [tokens, hidden]", x.shape());
  if (delta) {
    require_shape(delta, x.shape(), "delta");
    require_dtype(delta, x.dtype(), "delta");
    require_shape(sum, x.shape(), "sum");
    require_dtype(sum, x.dtype(), "sum");
  }
  require_shape(weight, {x.dim(1)}, "weight");
  require_shape(y, x.shape(), "y");
  require_dtype(y, x.dtype(), "y");
  require_shape(rstd, {x.dim(0)}, "rstd");
  SWITCHYARD_BODY(stream, rms_norm_forward)(stream, x, delta, weight, eps, sum, y, rstd);
}

void rms_norm_backward(Stream& stream, Workspace& workspace, ConstTensorView dy, ConstTensorView x,
                       ConstTensorView weight, ConstTensorView rstd, TensorView dx,
                       TensorView dweight) {
  require(x.rank() == 2, "x has shape {}, expected [tokens, hidden]", x.shape());
  require_shape(dy, x.shape(), "dy");
  require_dtype(dy, x.dtype(), "dy");
  require_shape(weight, {x.dim(1)}, "weight");
  require_shape(rstd, {x.dim(0)}, "rstd");
  require_shape(dx, x.shape(), "dx");
  require_dtype(dx, x.dtype(), "dx");
  require_shape(dweight, weight.shape(), "dweight");
  count_scratch(
      stream, workspace, [&] { cpu::row_sums_scratch(workspace, x.dim(0), x.dim(1)); },
      [&] {
        cuda::norm_backward_scratch(workspace, stream.device(), x,
                                    cuda::norm_backward_vectors(dy, x, weight, dx), x.dim(1));
      });
  SWITCHYARD_BODY(stream, rms_norm_backward)(stream, workspace, dy, x, weight, rstd, dx, dweight);
}

namespace cpu {
namespace {

template <class T>
void normalize_row(const T* x, const T* delta, const float* weight, float eps, int64_t hidden,
                   T* sum, T* y, float* rstd) {
  const T* in = x;
  if (delta) {
    // The sum is rounded to T before it is normalised: the backward pass reads the rounded sum.
#pragma omp simd
    for (int64_t i = 0; i < hidden; ++i) {
      sum[i] = static_cast<float>(x[i]) + static_cast<float>(delta[i]);
    }
    in = sum;
  }
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < hidden; ++i) {
    const auto v = static_cast<float>(in[i]);
    squares += v * v;
  }
  *rstd = 1.0f / std::sqrt(squares / static_cast<float>(hidden) + eps);
  const float r = *rstd;
#pragma omp simd
  for (int64_t i = 0; i < hidden; ++i) y[i] = static_cast<float>(in[i]) * r * weight[i];
}

// With g = dy * weight and n = x * rstd:  dx += rstd * (g - n * mean(g * n)),  dweight += dy * n
template <class T>
void backward_row(const T* dy, const T* x, const float* weight, float rstd, int64_t hidden, T* dx,
                  float* dweight) {
  float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < hidden; ++i) {
    dot += static_cast<float>(dy[i]) * weight[i] * static_cast<float>(x[i]);
  }
  const float mean = dot * rstd / static_cast<float>(hidden);
#pragma omp simd
  for (int64_t i = 0; i < hidden; ++i) {
    const float n = static_cast<float>(x[i]) * rstd, d = static_cast<float>(dy[i]);
    dx[i] = static_cast<float>(dx[i]) + rstd * (d * weight[i] - n * mean);
    dweight[i] += d * n;
  }
}

}  // namespace

void rms_norm_forward(Stream&, ConstTensorView x, ConstTensorView delta, ConstTensorView weight,
                      float eps, TensorView sum, TensorView y, TensorView rstd) {
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    const int64_t tokens = x.dim(0), hidden = x.dim(1);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t at = t * hidden;
      normalize_row(x.data<T>() + at, delta ? delta.data<T>() + at : nullptr, weight.data<float>(),
                    eps, hidden, delta ? sum.data<T>() + at : nullptr, y.data<T>() + at,
                    rstd.data<float>() + t);
    }
  });
}

void rms_norm_backward(Stream&, Workspace& workspace, ConstTensorView dy, ConstTensorView x,
                       ConstTensorView weight, ConstTensorView rstd, TensorView dx,
                       TensorView dweight) {
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    const int64_t hidden = x.dim(1);
    const auto add_row = [&](int64_t t, float* sums) {
      const int64_t at = t * hidden;
      backward_row(dy.data<T>() + at, x.data<T>() + at, weight.data<float>(), rstd.data<float>()[t],
                   hidden, dx.data<T>() + at, sums);
    };
    accumulate_over_rows(workspace, x.dim(0), hidden, dweight.data<float>(), add_row);
  });
}

}  // namespace cpu
}  // namespace switchyard
