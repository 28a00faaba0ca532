#pragma once

#include <string>

#include "kernels/basic/activation.h"
#include "kernels/runtime/profile.h"
#include "layers/build_context.h"
#include "layers/linear.h"
#include "layers/step_context.h"

namespace switchyard {

// down(activation(up(x))), or down(silu(gate(x)) * up(x)) where gated. The inner width is split
// over tp. It is the dense feed-forward of a block, or its shared experts. A factor per token may
// multiply the result; as with routed experts it is applied before `down`, which is linear.
class FeedForward {
 public:
  struct Saved {
    ConstTensorView x;        // [local_tokens, hidden]
    ConstTensorView factors;  // [local_tokens, 1] f32; may be empty
    TensorView up;  // [tokens, local inner width, twice where gated] before the activation
  };

  // `part` is the part of the step to which its time is counted.
  FeedForward(const BuildContext& build, const std::string& name, int64_t ffn_hidden, bool bias,
              Part part);

  //   x, y     [local_tokens, hidden]
  //   factors  [local_tokens, 1] f32; empty: all 1
  void forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved,
               ConstTensorView factors = {}) const;
  //   dx        [local_tokens, hidden], overwritten
  //   dfactors  [local_tokens, 1] f32, overwritten; empty without factors
  void backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx,
                TensorView dfactors = {});

 private:
  Part part_;
  Activation activation_;
  int64_t local_ffn_hidden_;
  DType dtype_;
  Linear up_;
  Linear down_;
  Parameter* down_bias_ = nullptr;
};

}  // namespace switchyard
