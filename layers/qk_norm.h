#pragma once

#include <string>

#include "layers/build_context.h"
#include "layers/step_context.h"

namespace switchyard {

// RMSNorm of queries and keys before the rotation: of every head's vector (Dehghani et al. 2023,
// with RMSNorm as in Qwen3), or of all heads' channels of a token together (OLMoE). Tensors are
// [batch, local heads, seq_len, head_dim].
class QkNorm {
 public:
  struct Saved {
    TensorView q, k;            // the input
    TensorView q_rstd, k_rstd;  // head: of every vector
    TensorView squares;         // projection: [2, tokens] sums over all ranks' heads, of q and of k
  };

  QkNorm(const BuildContext& build, const std::string& name);

  // Normalises saved.q and saved.k.
  void forward(StepContext& ctx, Saved& saved, TensorView q, TensorView k) const;
  //   dq_in, dk_in  the gradients of saved.q and saved.k, overwritten
  void backward(StepContext& ctx, ConstTensorView dq, ConstTensorView dk, const Saved& saved,
                TensorView dq_in, TensorView dk_in);

 private:
  QkNormKind kind_;
  float eps_;
  int64_t q_width_, k_width_;  // channels of all ranks' heads
  Parameter* q_weight_;
  Parameter* k_weight_;
};

}  // namespace switchyard
