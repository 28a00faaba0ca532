#include "kernels/basic/activation.h"

#include <cmath>

#include "kernels/inline/activation_functions.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

namespace {

void check_operands(Activation activation, ConstTensorView in, ConstTensorView row_scale,
                    ConstTensorView out, const char* out_name) {
  require(in.rank() == 2 && out.rank() == 2, "activation reads [rows, width] tensors, not {}",
          in.shape());
  require_shape(in, {out.dim(0), out.dim(1) * (is_gated(activation) ? 2 : 1)}, "in");
  require_dtype(out, in.dtype(), out_name);
  if (row_scale) {
    require_shape(row_scale, {in.dim(0)}, "row_scale");
    require_dtype(row_scale, DType::f32, "row_scale");
  }
}

}  // namespace

void activation_forward(Stream& stream, Activation activation, ConstTensorView in,
                        ConstTensorView row_scale, TensorView out) {
  check_operands(activation, in, row_scale, out, "out");
  SWITCHYARD_BODY(stream, activation_forward)(stream, activation, in, row_scale, out);
}

void activation_backward(Stream& stream, Activation activation, ConstTensorView dout,
                         ConstTensorView in, ConstTensorView row_scale, TensorView din,
                         TensorView drow_scale) {
  check_operands(activation, in, row_scale, dout, "dout");
  require_shape(din, in.shape(), "din");
  require_dtype(din, in.dtype(), "din");
  if (row_scale) require_shape(drow_scale, row_scale.shape(), "drow_scale");
  SWITCHYARD_BODY(stream, activation_backward)
  (stream, activation, dout, in, row_scale, din, drow_scale);
}

namespace cpu {
namespace {

template <class F, class T>
void plain_row(const T* in, float scale, int64_t ffn, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < ffn; ++i) out[i] = scale * F::at(static_cast<float>(in[i])).value;
}

template <class F, class T>
void gated_row(const T* gate, const T* up, float scale, int64_t ffn, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < ffn; ++i) {
    out[i] = scale * F::at(static_cast<float>(gate[i])).value * static_cast<float>(up[i]);
  }
}

// These functions return <dout, activation(in)>.
template <class F, class T>
float plain_backward_row(const T* dout, const T* in, float scale, int64_t ffn, T* din) {
  float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < ffn; ++i) {
    const Point f = F::at(static_cast<float>(in[i]));
    const auto d = static_cast<float>(dout[i]);
    dot += d * f.value;
    din[i] = scale * d * f.slope;
  }
  return dot;
}

template <class F, class T>
float gated_backward_row(const T* dout, const T* gate, const T* up, float scale, int64_t ffn,
                         T* dgate, T* dup) {
  float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < ffn; ++i) {
    const Point f = F::at(static_cast<float>(gate[i]));
    const auto d = static_cast<float>(dout[i]), u = static_cast<float>(up[i]);
    dot += d * f.value * u;
    dgate[i] = scale * d * u * f.slope;
    dup[i] = scale * d * f.value;
  }
  return dot;
}

}  // namespace

void activation_forward(Stream&, Activation activation, ConstTensorView in,
                        ConstTensorView row_scale, TensorView out) {
  const int64_t rows = out.dim(0), ffn = out.dim(1), width = in.dim(1);
  const float* scales = row_scale ? row_scale.data<float>() : nullptr;
  dispatch_compute_dtype(in.dtype(), [&]<class T>() {
    dispatch_function(activation, [&]<class F>() {
#pragma omp parallel for schedule(static)
      for (int64_t r = 0; r < rows; ++r) {
        const T* x = in.data<T>() + r * width;
        T* y = out.data<T>() + r * ffn;
        const float scale = scales ? scales[r] : 1.0f;
        if (is_gated(activation)) {
          gated_row<F>(x, x + ffn, scale, ffn, y);
        } else {
          plain_row<F>(x, scale, ffn, y);
        }
      }
    });
  });
}

void activation_backward(Stream&, Activation activation, ConstTensorView dout, ConstTensorView in,
                         ConstTensorView row_scale, TensorView din, TensorView drow_scale) {
  const int64_t rows = dout.dim(0), ffn = dout.dim(1), width = in.dim(1);
  const float* scales = row_scale ? row_scale.data<float>() : nullptr;
  float* dscales = row_scale ? drow_scale.data<float>() : nullptr;
  dispatch_compute_dtype(in.dtype(), [&]<class T>() {
    dispatch_function(activation, [&]<class F>() {
#pragma omp parallel for schedule(static)
      for (int64_t r = 0; r < rows; ++r) {
        const T* x = in.data<T>() + r * width;
        const T* dy = dout.data<T>() + r * ffn;
        T* dx = din.data<T>() + r * width;
        const float scale = scales ? scales[r] : 1.0f;
        const float dot = is_gated(activation)
                              ? gated_backward_row<F>(dy, x, x + ffn, scale, ffn, dx, dx + ffn)
                              : plain_backward_row<F>(dy, x, scale, ffn, dx);
        if (dscales) dscales[r] = dot;
      }
    });
  });
}

}  // namespace cpu
}  // namespace switchyard
