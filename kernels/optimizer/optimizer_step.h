#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// What a step multiplies its gradients by first: a number, times one that lies on the stream's
// device where it is given. If the product is NaN, the step changes nothing. So the host need not
// know the gradients' norm to start an update.
struct GradScale {
  GradScale(float number) : factor(number) {}  // NOLINT: a number is a scale
  GradScale(float number, ConstTensorView scale) : factor(number), on_device(scale) {}

  float factor;
  ConstTensorView on_device;  // [1] f32
};

struct AdamWOptions {
  float lr = 0.0f;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float eps = 1e-8f;
  float weight_decay = 0.0f;
  int64_t step = 1;  // counts from 1, for the bias correction
};

// AdamW (Loshchilov and Hutter 2019, algorithm 2) on a flat range.
//   grad         [n] f32
//   main_params  [n] f32, updated
//   exp_avg      [n] f32, updated
//   exp_avg_sq   [n] f32, updated
//   params       [n] bf16: the rounded copy, written in the same pass; empty in f32 training
using AdamWStep = void(Stream&, const AdamWOptions&, const GradScale&, ConstTensorView grad,
                       TensorView main_params, TensorView exp_avg, TensorView exp_avg_sq,
                       TensorView params);

struct SgdOptions {
  float lr = 0.0f;
  float momentum = 0.0f;
  float weight_decay = 0.0f;  // coupled: added to the gradient
};

// SGD with momentum: m = momentum * m + (g + weight_decay * p);  p -= lr * m
//   momentum_buffer  [n] f32, updated
using SgdStep = void(Stream&, const SgdOptions&, const GradScale&, ConstTensorView grad,
                     TensorView main_params, TensorView momentum_buffer, TensorView params);

struct MomentumOptions {
  float momentum = 0.0f;
  bool nesterov = false;
};

// The momentum of Muon (Liu et al. 2025, equation 1 and its footnote); g is the scaled gradient:
//   m = momentum * m + g;  direction = g + momentum * m with nesterov, else m
//   grad             [n] f32
//   momentum_buffer  [n] f32, updated
//   direction        [n] f32, written
using MomentumStep = void(Stream&, const MomentumOptions&, const GradScale&, ConstTensorView grad,
                          TensorView momentum_buffer, TensorView direction);

// The norm of a gradient, and the scales of an update that clips it to the norm `clip` (0: never):
//   sum_of_squares  [1] f64
//   norm            [1] f64: the root of it
//   scales          [2] f32: clip / norm where the norm is greater than `clip`, else 1; and 1. Both
//                   are NaN if the norm is not finite
using ClipScales = void(Stream&, ConstTensorView sum_of_squares, double clip, TensorView norm,
                        TensorView scales);

AdamWStep adamw_step;
SgdStep sgd_step;
MomentumStep momentum_step;
ClipScales clip_scales;

namespace cpu {
AdamWStep adamw_step;
SgdStep sgd_step;
MomentumStep momentum_step;
ClipScales clip_scales;
}  // namespace cpu
namespace cuda {
AdamWStep adamw_step;
SgdStep sgd_step;
MomentumStep momentum_step;
ClipScales clip_scales;
}  // namespace cuda

}  // namespace switchyard
