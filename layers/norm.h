#pragma once

#include <string>

#include "layers/build_context.h"
#include "layers/step_context.h"

namespace switchyard {

// The residual stream as a sum that has not been computed yet: x = sum + update. The norm that
// follows does the addition while it reads. Both are [local_tokens, hidden]; update is empty where
// the stream is `sum` alone.
struct ResidualStream {
  TensorView sum;
  TensorView update;
};

// RMSNorm or LayerNorm of the residual stream, with the addition that precedes it.
class NormLayer {
 public:
  struct Saved {
    TensorView x;     // the norm's input
    TensorView mean;  // layer_norm only
    TensorView rstd;
  };

  // The model's kind of norm, over its hidden size.
  NormLayer(const BuildContext& build, const std::string& name);

  // Normalises x.sum + x.update. The sum overwrites x.update, which nothing else needs, and becomes
  // saved.x.
  //   y         [tokens, hidden]
  void forward(StepContext& ctx, const ResidualStream& x, TensorView y, Saved& saved) const;
  //   dx  [tokens, hidden]  +=
  void backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx);

 private:
  Norm kind_;
  float eps_;
  Parameter* weight_;
  Parameter* bias_ = nullptr;  // layer_norm only
};

}  // namespace switchyard
