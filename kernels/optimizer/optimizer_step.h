#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

struct AdamWOptions {
  float lr = 0.0f;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float eps = 1e-8f;
  float weight_decay = 0.0f;
  int64_t step = 1;  // counts from 1, for the bias correction
};

// AdamW (Loshchilov and Hutter 2019, algorithm 2) on a flat range; gradients are first multiplied
// by grad_scale (clipping).
//   grad         [n] f32
//   main_params  [n] f32, updated
//   exp_avg      [n] f32, updated
//   exp_avg_sq   [n] f32, updated
//   params       [n] bf16: the rounded copy, written in the same pass; empty in f32 training
using AdamWStep = void(Stream&, const AdamWOptions&, float grad_scale, ConstTensorView grad,
                       TensorView main_params, TensorView exp_avg, TensorView exp_avg_sq,
                       TensorView params);

struct SgdOptions {
  float lr = 0.0f;
  float momentum = 0.0f;
  float weight_decay = 0.0f;  // coupled: added to the gradient
};

// SGD with momentum: m = momentum * m + (g + weight_decay * p);  p -= lr * m
//   momentum_buffer  [n] f32, updated
using SgdStep = void(Stream&, const SgdOptions&, float grad_scale, ConstTensorView grad,
                     TensorView main_params, TensorView momentum_buffer, TensorView params);

struct MomentumOptions {
  float momentum = 0.0f;
  bool nesterov = false;
};

// The momentum of Muon (Liu et al. 2025, equation 1 and its footnote); g is the gradient times
// grad_scale:
//   m = momentum * m + g;  direction = g + momentum * m with nesterov, else m
//   grad             [n] f32
//   momentum_buffer  [n] f32, updated
//   direction        [n] f32, written
using MomentumStep = void(Stream&, const MomentumOptions&, float grad_scale, ConstTensorView grad,
                          TensorView momentum_buffer, TensorView direction);

AdamWStep adamw_step;
SgdStep sgd_step;
MomentumStep momentum_step;

namespace cpu {
AdamWStep adamw_step;
SgdStep sgd_step;
MomentumStep momentum_step;
}  // namespace cpu
namespace cuda {
AdamWStep adamw_step;
SgdStep sgd_step;
MomentumStep momentum_step;
}  // namespace cuda

}  // namespace switchyard
