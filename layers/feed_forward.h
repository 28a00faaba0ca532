#pragma once

#include <string>

#include "kernels/basic/activation.h"
#include "layers/build_context.h"
#include "layers/linear.h"
#include "layers/step_context.h"

namespace switchyard {

// down(activation(up(x))), or down(silu(gate(x)) * up(x)) where gated. The inner width is split
// over tp. The dense feed-forward of a block, and its shared experts.
class FeedForward {
 public:
  struct Saved {
    ConstTensorView x;  // [local_tokens, hidden]
    TensorView up;      // [tokens, local inner width, twice where gated] before the activation
  };

  FeedForward(const BuildContext& build, const std::string& name, int64_t ffn_hidden, bool bias);

  // What the backward pass will need of x [local_tokens, hidden]. Apart from `forward`, so that the
  // caller can take temporaries of its own after what stays.
  Saved save(StepContext& ctx, ConstTensorView x) const;
  //   y     [local_tokens, hidden]
  void forward(StepContext& ctx, const Saved& saved, TensorView y) const;
  //   dx    [local_tokens, hidden], overwritten
  void backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx) const;

 private:
  Activation activation_;
  int64_t local_ffn_hidden_;
  DType dtype_;
  Linear up_;
  Linear down_;
  Parameter* down_bias_ = nullptr;
};

}  // namespace switchyard
