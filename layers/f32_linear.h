#pragma once

#include <string>

#include "layers/build_context.h"
#include "layers/step_context.h"

namespace switchyard {

// y = x W^T in f32, whatever the dtype of x: the logits of routers and gates. Every rank has the
// whole weight, and maps its own tokens.
class F32Linear {
 public:
  // `hidden_matrices` as in ParameterSpec.
  F32Linear(const BuildContext& build, const std::string& name, int64_t out, int hidden_matrices);

  //   x  [local_tokens, hidden], y [local_tokens, out] f32
  void forward(StepContext& ctx, ConstTensorView x, TensorView y) const;
  //   dx  [local_tokens, hidden]  +=
  void backward(StepContext& ctx, ConstTensorView dy, ConstTensorView x, TensorView dx);

 private:
  void backward_split(StepContext& ctx, ConstTensorView dy, ConstTensorView x, TensorView dx);

  Parameter* weight_;  // [out, hidden] f32
};

}  // namespace switchyard
