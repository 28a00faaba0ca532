#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

struct StepContext;

// Sees the queries and keys of every layer in a full pass over a micro-batch, to learn from a
// frozen model. Decoding calls no observer.
class AttentionObserver {
 public:
  virtual ~AttentionObserver() = default;

  // q and k belong to this rank's heads after RoPE, on the stream's device, and are valid during
  // the call only. Every rank of the tp group makes the calls in the same order, so `observe` may
  // call collectives of that group.
  //   q  [batch, local heads, seq_len, head_dim]     compute dtype
  //   k  [batch, local kv heads, seq_len, head_dim]
  virtual void observe(StepContext& ctx, int layer, ConstTensorView q, ConstTensorView k) = 0;
};

}  // namespace switchyard
