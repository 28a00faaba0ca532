#pragma once

#include <string>

#include "layers/build_context.h"
#include "layers/step_context.h"

namespace switchyard {

// RMSNorm or LayerNorm of the residual stream, with the add that precedes it.
class NormLayer {
 public:
  struct Saved {
    ConstTensorView input;  // what was normalised
    TensorView mean;        // layer_norm only
    TensorView rstd;
  };

  // The model's kind of norm, over its hidden size.
  NormLayer(const BuildContext& build, const std::string& name);

  //   x, delta  [tokens, width]; delta may be empty: then x is normalised and sum stays unwritten
  //   sum       [tokens, width] = x + delta; must outlive the backward pass
  //   y         [tokens, width]
  void forward(StepContext& ctx, ConstTensorView x, ConstTensorView delta, TensorView sum,
               TensorView y, Saved& saved) const;
  //   dx  [tokens, width]  +=
  void backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx) const;

 private:
  Norm kind_;
  float eps_;
  Parameter* weight_;
  Parameter* bias_ = nullptr;  // layer_norm only
};

}  // namespace switchyard
