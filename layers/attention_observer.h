#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

struct StepContext;

// Sees what the attention of every layer reads in a full pass over a micro-batch: to learn from a
// frozen model. Decoding calls none.
class AttentionObserver {
 public:
  virtual ~AttentionObserver() = default;

  // After RoPE, on the stream's device, this rank's heads; gone when the call returns. Called on
  // every rank of the tp group in the same order, so it may call collectives of that group.
  //   q  [batch, local heads, seq_len, head_dim]     compute dtype
  //   k  [batch, local kv heads, seq_len, head_dim]
  virtual void observe(StepContext& ctx, int layer, ConstTensorView q, ConstTensorView k) = 0;
};

}  // namespace switchyard
