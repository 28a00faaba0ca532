#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/basic/activation.h"
#include "layers/build_context.h"
#include "layers/step_context.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

// The experts of this rank: for the rows of each, w * down(activation(up(x))), where w is the
// router's weight of the (token, expert) pair. The weight is applied to the activation: `down` is
// linear, so the result is the same, and its gradient is a dot product of the inner width.
class Experts {
 public:
  struct Saved {
    ExpertRows rows;  // what they read: x [rows, width], weights [rows] f32
    TensorView up;    // [rows, expert_ffn_hidden, twice where gated] before the activation
  };
  // What backward_input leaves for backward_weight.
  struct Grads {
    ConstTensorView dy;  // [rows, width]
    TensorView dup;      // as Saved::up
  };

  // BigMac's experts read and write the narrow `latent` and are inflated inside; those of the other
  // structures read and write `hidden`.
  Experts(const BuildContext& build, const std::string& name);

  // `x` stays where it is until the backward pass.
  //   y  [rows, width]
  void forward(StepContext& ctx, const ExpertRows& x, TensorView y, Saved& saved) const;

  // The backward pass comes in two halves, because what the weights' gradients cost can hide the
  // way back of dx. What the first half leaves for the second lies in scratch memory that the
  // caller releases.
  //   dy        [rows, width], must stay as it is until the second half
  //   dx        [rows, width], overwritten
  //   dweights  [rows] f32, overwritten
  Grads backward_input(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx,
                       TensorView dweights) const;
  void backward_weight(StepContext& ctx, const Grads& grads, const Saved& saved);

 private:
  void activate(StepContext& ctx, const Saved& saved, TensorView act) const;

  Activation activation_;
  int64_t width_;
  int64_t ffn_hidden_;
  int64_t up_width_;  // twice ffn_hidden where gated: gate first
  DType dtype_;
  Parameter* up_;    // [local experts, up_width, width]
  Parameter* down_;  // [local experts, width, ffn_hidden]
};

}  // namespace switchyard
