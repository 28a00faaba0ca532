#include "kernels/optimizer/optimizer_step.h"

#include <cmath>
#include <limits>

#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

void check_flat(ConstTensorView tensor, ConstTensorView like, const char* name) {
  require_shape(tensor, like.shape(), name);
  require_dtype(tensor, DType::f32, name);
}

void check_scale(const GradScale& scale) {
  if (!scale.on_device) return;
  require_shape(scale.on_device, {1}, "the scale of the gradients");
  require_dtype(scale.on_device, DType::f32, "the scale of the gradients");
}

void check_params(ConstTensorView params, ConstTensorView like) {
  if (!params) return;
  require_shape(params, like.shape(), "params");
  require_dtype(params, DType::bf16, "params");
}

}  // namespace

void adamw_step(Stream& stream, const AdamWOptions& options, const GradScale& scale,
                ConstTensorView grad, TensorView main_params, TensorView exp_avg,
                TensorView exp_avg_sq, TensorView params) {
  check_scale(scale);
  check_flat(main_params, grad, "main_params");
  check_flat(exp_avg, grad, "exp_avg");
  check_flat(exp_avg_sq, grad, "exp_avg_sq");
  check_params(params, grad);
  require(options.step >= 1, "AdamW counts its steps from 1, not {}", options.step);
  SWITCHYARD_BODY(stream, adamw_step)
  (stream, options, scale, grad, main_params, exp_avg, exp_avg_sq, params);
}

void sgd_step(Stream& stream, const SgdOptions& options, const GradScale& scale,
              ConstTensorView grad, TensorView main_params, TensorView momentum_buffer,
              TensorView params) {
  check_scale(scale);
  check_flat(main_params, grad, "main_params");
  check_flat(momentum_buffer, grad, "momentum_buffer");
  check_params(params, grad);
  SWITCHYARD_BODY(stream, sgd_step)
  (stream, options, scale, grad, main_params, momentum_buffer, params);
}

void momentum_step(Stream& stream, const MomentumOptions& options, const GradScale& scale,
                   ConstTensorView grad, TensorView momentum_buffer, TensorView direction) {
  check_scale(scale);
  check_flat(momentum_buffer, grad, "momentum_buffer");
  check_flat(direction, grad, "direction");
  SWITCHYARD_BODY(stream, momentum_step)
  (stream, options, scale, grad, momentum_buffer, direction);
}

void clip_scales(Stream& stream, ConstTensorView sum_of_squares, double clip, TensorView norm,
                 TensorView scales) {
  require_shape(sum_of_squares, {1}, "sum_of_squares");
  require_dtype(sum_of_squares, DType::f64, "sum_of_squares");
  require_shape(norm, {1}, "norm");
  require_dtype(norm, DType::f64, "norm");
  require_shape(scales, {2}, "scales");
  require_dtype(scales, DType::f32, "scales");
  SWITCHYARD_BODY(stream, clip_scales)(stream, sum_of_squares, clip, norm, scales);
}

namespace cpu {
namespace {

float value_of(const GradScale& scale) {
  return scale.on_device ? scale.factor * scale.on_device.data<float>()[0] : scale.factor;
}

}  // namespace

void adamw_step(Stream&, const AdamWOptions& o, const GradScale& scale, ConstTensorView grad,
                TensorView main_params, TensorView exp_avg, TensorView exp_avg_sq,
                TensorView params) {
  const float grad_scale = value_of(scale);
  if (std::isnan(grad_scale)) return;
  const int64_t n = grad.num_elements();
  const auto step = static_cast<double>(o.step);
  const auto by_correction1 = static_cast<float>(1.0 / (1.0 - std::pow(o.beta1, step)));
  const auto by_correction2 = static_cast<float>(1.0 / (1.0 - std::pow(o.beta2, step)));
  const float keep = 1.0f - o.lr * o.weight_decay;
  const float* g = grad.data<float>();
  float *p = main_params.data<float>(), *m = exp_avg.data<float>(), *v = exp_avg_sq.data<float>();
  bfloat16* rounded = params ? params.data<bfloat16>() : nullptr;
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    const float scaled = g[i] * grad_scale;
    m[i] = o.beta1 * m[i] + (1.0f - o.beta1) * scaled;
    v[i] = o.beta2 * v[i] + (1.0f - o.beta2) * scaled * scaled;
    const float update = m[i] * by_correction1 / (std::sqrt(v[i] * by_correction2) + o.eps);
    p[i] = keep * p[i] - o.lr * update;
    if (rounded) rounded[i] = p[i];
  }
}

void sgd_step(Stream&, const SgdOptions& o, const GradScale& scale, ConstTensorView grad,
              TensorView main_params, TensorView momentum_buffer, TensorView params) {
  const float grad_scale = value_of(scale);
  if (std::isnan(grad_scale)) return;
  const int64_t n = grad.num_elements();
  const float* g = grad.data<float>();
  float *p = main_params.data<float>(), *m = momentum_buffer.data<float>();
  bfloat16* rounded = params ? params.data<bfloat16>() : nullptr;
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    m[i] = o.momentum * m[i] + (g[i] * grad_scale + o.weight_decay * p[i]);
    p[i] -= o.lr * m[i];
    if (rounded) rounded[i] = p[i];
  }
}

void momentum_step(Stream&, const MomentumOptions& o, const GradScale& scale, ConstTensorView grad,
                   TensorView momentum_buffer, TensorView direction) {
  const float grad_scale = value_of(scale);
  if (std::isnan(grad_scale)) return;
  const int64_t n = grad.num_elements();
  const float* g = grad.data<float>();
  float *m = momentum_buffer.data<float>(), *out = direction.data<float>();
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    const float scaled = g[i] * grad_scale;
    m[i] = o.momentum * m[i] + scaled;
    out[i] = o.nesterov ? scaled + o.momentum * m[i] : m[i];
  }
}

void clip_scales(Stream&, ConstTensorView sum_of_squares, double clip, TensorView norm,
                 TensorView scales) {
  const double root = std::sqrt(sum_of_squares.data<double>()[0]);
  const bool finite = std::isfinite(root), clips = clip > 0.0 && root > clip;
  norm.data<double>()[0] = root;
  const float one = finite ? 1.0f : std::numeric_limits<float>::quiet_NaN();
  scales.data<float>()[0] = finite && clips ? static_cast<float>(clip / root) : one;
  scales.data<float>()[1] = one;
}

}  // namespace cpu
}  // namespace switchyard
