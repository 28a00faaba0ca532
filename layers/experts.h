#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/basic/activation.h"
#include "layers/build_context.h"
#include "layers/step_context.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

// The experts of this rank. Each computes w * down(activation(up(x))) for its rows, where w is the
// router's weight of the (token, expert) pair. w is applied to the activation: `down` is linear, so
// the result is the same, and the gradient of w is a dot product of the inner width.
class Experts {
 public:
  struct Saved {
    ExpertRows rows;  // the input: x [rows, width], weights [rows] f32
    TensorView up;    // [rows, expert_ffn_hidden, twice where gated] before the activation
  };
  // The gradients that backward_input hands to backward_weight.
  struct Grads {
    ConstTensorView dy;  // [rows, width]
    TensorView dup;      // as Saved::up
    // [rows, expert_ffn_hidden], only where a product may compute it on its way
    TensorView act = {};
    bool act_is_computed = false;
  };

  // BigMac's experts read and write rows of the narrow width `latent` and are wider inside; those
  // of the other structures read and write rows of width `hidden`.
  Experts(const BuildContext& build, const std::string& name);

  // The memory of `x` must stay valid and unchanged until the backward pass.
  //   y  [rows, width]
  void forward(StepContext& ctx, const ExpertRows& x, TensorView y, Saved& saved) const;

  // Of a few tokens, all of whose experts are here: every slot (token, choice) has a row.
  //   x             [tokens, width]
  //   dispatch_idx  [tokens, top_k] i32, -1: dropped
  //   weights       [tokens, top_k] f32, the router's
  //   y             [tokens * top_k, width]
  void forward_by_slot(StepContext& ctx, ConstTensorView x, ConstTensorView dispatch_idx,
                       ConstTensorView weights, TensorView y) const;

  // The backward pass has two halves, because the transfer of dx can run behind the computation of
  // the weights' gradients. The result of the first half lies in scratch memory that the caller
  // releases after the second.
  //   dy        [rows, width], must not change until the second half
  //   dx        [rows, width], overwritten
  //   dweights  [rows] f32, overwritten
  Grads backward_input(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx,
                       TensorView dweights) const;
  void backward_weight(StepContext& ctx, const Grads& grads, const Saved& saved);

 private:
  void activate(StepContext& ctx, const Saved& saved, TensorView act) const;
  // Grads::act, or else scratch memory of its shape.
  TensorView memory_of_act(StepContext& ctx, const Grads& grads) const;
  // The gradient of what `activate` reads, from that of the experts' output.
  //   dweights  [rows] f32, overwritten
  void activation_gradient(StepContext& ctx, const Grads& grads, const Saved& saved,
                           TensorView dweights) const;

  Activation activation_;
  int64_t width_;
  int64_t ffn_hidden_;
  int64_t up_width_;  // twice ffn_hidden where gated: gate first
  DType dtype_;
  Parameter* up_;    // [local experts, up_width, width]
  Parameter* down_;  // [local experts, width, ffn_hidden]
};

}  // namespace switchyard
