#pragma once

#include "kernels/basic/activation.h"
#include "kernels/inline/vector_math.h"

namespace switchyard {

// Activation functions for the bodies of both backends.

// A function and its derivative at one point.
struct Point {
  float value;
  float slope;
};

struct Silu {
  static constexpr Point at(float x) {
    const float s = fast_sigmoid(x);
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
};
struct Gelu {
  static constexpr Point at(float x) {
    constexpr float kSqrt2OverPi = 0.7978845608f, kCubic = 0.044715f;
    const float t = fast_tanh(kSqrt2OverPi * (x + kCubic * x * x * x));
    const float inner_slope = kSqrt2OverPi * (1.0f + 3.0f * kCubic * x * x);
    return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner_slope};
  }
};
struct Relu {
  static constexpr Point at(float x) { return {x > 0.0f ? x : 0.0f, x > 0.0f ? 1.0f : 0.0f}; }
};
struct Relu2 {
  static constexpr Point at(float x) {
    const float positive = x > 0.0f ? x : 0.0f;
    return {positive * positive, 2.0f * positive};
  }
};

template <class Body>
constexpr void dispatch_function(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::swiglu:
    case Activation::silu:
      return body.template operator()<Silu>();
    case Activation::gelu:
      return body.template operator()<Gelu>();
    case Activation::relu:
      return body.template operator()<Relu>();
    case Activation::relu2:
      return body.template operator()<Relu2>();
  }
}

}  // namespace switchyard
