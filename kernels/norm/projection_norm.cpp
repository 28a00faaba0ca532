#include "kernels/norm/projection_norm.h"

#include <cmath>

#include "kernels/cpu/row_sums.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

void check_operands(ConstTensorView x, ConstTensorView other, ConstTensorView sums,
                    ConstTensorView weight) {
  require(x.rank() == 4, "x has shape {}, expected [batch, heads, seq_len, head_dim]", x.shape());
  require_shape(other, x.shape(), "its partner");
  require_dtype(other, x.dtype(), "its partner");
  require_shape(sums, {x.dim(0) * x.dim(2)}, "the tokens' sums");
  require_dtype(sums, DType::f32, "the tokens' sums");
  if (weight) require_shape(weight, {x.dim(1) * x.dim(3)}, "weight");
}

}  // namespace

void projection_sums(Stream& stream, ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                     TensorView sums) {
  check_operands(a, b, sums, weight);
  SWITCHYARD_BODY(stream, projection_sums)(stream, a, b, weight, sums);
}

void projection_norm_forward(Stream& stream, ConstTensorView x, ConstTensorView squares,
                             ConstTensorView weight, int64_t width, float eps, TensorView y) {
  check_operands(x, y, squares, weight);
  SWITCHYARD_BODY(stream, projection_norm_forward)(stream, x, squares, weight, width, eps, y);
}

void projection_norm_backward(Stream& stream, Workspace& workspace, ConstTensorView dy,
                              ConstTensorView x, ConstTensorView squares, ConstTensorView dots,
                              ConstTensorView weight, int64_t width, float eps, TensorView dx,
                              TensorView dweight) {
  check_operands(x, dy, squares, weight);
  check_operands(x, dx, dots, dweight);
  count_scratch(
      stream, workspace, [&] { cpu::row_sums_scratch(workspace, squares.dim(0), weight.dim(0)); },
      [&] { cuda::projection_norm_scratch(workspace, squares.dim(0), weight.dim(0)); });
  SWITCHYARD_BODY(stream, projection_norm_backward)
  (stream, workspace, dy, x, squares, dots, weight, width, eps, dx, dweight);
}

namespace cpu {
namespace {

// Where the channels of a token's heads stand in [batch, heads, seq_len, head_dim].
struct Heads {
  explicit Heads(ConstTensorView x)
      : tokens(x.dim(0) * x.dim(2)), heads(x.dim(1)), seq_len(x.dim(2)), head_dim(x.dim(3)) {}

  int64_t begin(int64_t token, int64_t head) const {
    return ((token / seq_len * heads + head) * seq_len + token % seq_len) * head_dim;
  }

  int64_t tokens, heads, seq_len, head_dim;
};

float rstd_of(float squares, int64_t width, float eps) {
  return 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
}

}  // namespace

void projection_sums(Stream&, ConstTensorView a, ConstTensorView b, ConstTensorView weight,
                     TensorView sums) {
  const Heads of(a);
  dispatch_compute_dtype(a.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < of.tokens; ++token) {
      float total = 0.0f;
      for (int64_t h = 0; h < of.heads; ++h) {
        const T* x = a.data<T>() + of.begin(token, h);
        const T* y = b.data<T>() + of.begin(token, h);
        const float* w = weight ? weight.data<float>() + h * of.head_dim : nullptr;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < of.head_dim; ++i) {
          total += static_cast<float>(x[i]) * static_cast<float>(y[i]) * (w ? w[i] : 1.0f);
        }
      }
      sums.data<float>()[token] = total;
    }
  });
}

void projection_norm_forward(Stream&, ConstTensorView x, ConstTensorView squares,
                             ConstTensorView weight, int64_t width, float eps, TensorView y) {
  const Heads of(x);
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < of.tokens; ++token) {
      const float r = rstd_of(squares.data<float>()[token], width, eps);
      for (int64_t h = 0; h < of.heads; ++h) {
        const T* in = x.data<T>() + of.begin(token, h);
        T* out = y.data<T>() + of.begin(token, h);
        const float* w = weight.data<float>() + h * of.head_dim;
#pragma omp simd
        for (int64_t i = 0; i < of.head_dim; ++i) out[i] = static_cast<float>(in[i]) * r * w[i];
      }
    }
  });
}

// With n = x * rstd:  dx = rstd * (dy * weight - n * mean(dy * weight * n)),  dweight += dy * n
void projection_norm_backward(Stream&, Workspace& workspace, ConstTensorView dy, ConstTensorView x,
                              ConstTensorView squares, ConstTensorView dots, ConstTensorView weight,
                              int64_t width, float eps, TensorView dx, TensorView dweight) {
  const Heads of(x);
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    const auto add_token = [&](int64_t token, float* sums) {
      const float r = rstd_of(squares.data<float>()[token], width, eps);
      const float mean = dots.data<float>()[token] * r / static_cast<float>(width);
      for (int64_t h = 0; h < of.heads; ++h) {
        const int64_t begin = of.begin(token, h), column = h * of.head_dim;
        const T *in = x.data<T>() + begin, *gradient = dy.data<T>() + begin;
        T* out = dx.data<T>() + begin;
        const float* w = weight.data<float>() + column;
#pragma omp simd
        for (int64_t i = 0; i < of.head_dim; ++i) {
          const float n = static_cast<float>(in[i]) * r, d = static_cast<float>(gradient[i]);
          out[i] = r * (d * w[i] - n * mean);
          sums[column + i] += d * n;
        }
      }
    };
    accumulate_over_rows(workspace, of.tokens, weight.dim(0), dweight.data<float>(), add_token);
  });
}

}  // namespace cpu
}  // namespace switchyard
