#pragma once

// For .cu files: activation functions as CUDA computes them, and both passes of one element.

#include <cuda_runtime.h>

#include "kernels/inline/activation_functions.h"
#include "kernels/runtime/bfloat16.h"

namespace switchyard::cuda {

// For bf16 the hardware's exponential and reciprocal are exact enough (ex2.approx, rcp.approx: 2
// units in the last place of f32 each), and take a fifth of the instructions.
__device__ inline float approximate_sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

struct ApproximateSilu {
  static __device__ Point at(float x) {
    const float s = approximate_sigmoid(x);
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
};
// 0.5 (1 + tanh(u)) is sigmoid(2 u), which does not cancel where u is negative.
struct ApproximateGelu {
  static __device__ Point at(float x) {
    constexpr float kSqrt2OverPi = 0.7978845608f, kCubic = 0.044715f;
    const float s = approximate_sigmoid(2.0f * kSqrt2OverPi * (x + kCubic * x * x * x));
    const float inner_slope = kSqrt2OverPi * (1.0f + 3.0f * kCubic * x * x);
    // Beyond this s is 0 or 1, and the slope's last term 0 times infinity.
    const float bend = fabsf(x) < 16.0f ? 2.0f * x * s * (1.0f - s) * inner_slope : 0.0f;
    return {x * s, s + bend};
  }
};

// F, or its approximation where values are T.
template <class F, class T>
struct Precise {
  using type = F;
};
template <>
struct Precise<Silu, bfloat16> {
  using type = ApproximateSilu;
};
template <>
struct Precise<Gelu, bfloat16> {
  using type = ApproximateGelu;
};

// One element of activation_forward: scale F(x), of a gated function times `up`.
template <class F, bool kGated>
__device__ inline float activated(float x, float up, float scale) {
  const float y = scale * F::at(x).value;
  return kGated ? y * up : y;
}

// One element of activation_backward, and again of the forward pass.
struct ActivationGradient {
  float out;  // the bits of activated()
  float dot;  // of the gradient of the row's scale
  float dx;
  float dup;  // of a gated function
};
//   d  the gradient of F(x), or of F(x) up, times the scale
template <class F, bool kGated>
__device__ inline ActivationGradient activation_gradient(float d, float x, float up, float scale) {
  const Point f = F::at(x);
  const float u = kGated ? up : 1.0f;
  const float y = scale * f.value;
  return {kGated ? y * up : y, d * f.value * u, scale * d * u * f.slope, scale * d * f.value};
}

}  // namespace switchyard::cuda
