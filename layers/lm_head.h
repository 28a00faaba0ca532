#pragma once

#include "layers/build_context.h"
#include "layers/step_context.h"

namespace switchyard {

// Computes logits over the vocabulary, which is split over tp, and their cross-entropy. It works
// through the tokens in chunks and computes a chunk's logits, loss and gradients before the next
// chunk, so that neither logits nor probabilities of a whole micro-batch exist at any time.
class LmHead {
 public:
  // Tokens of a chunk, the same on every rank.
  static int64_t chunk_tokens(DeviceKind device, int64_t vocab_size, int tp);

  // `embedding` is the head's weight where embeddings are tied.
  LmHead(const BuildContext& build, Parameter& embedding);

  // Adds the cross-entropy to the statistics, and its gradient to the weight's gradient in the same
  // call, because logits are not kept.
  //   x   [local_tokens, hidden]
  //   dx  [local_tokens, hidden], overwritten; empty: no gradients
  void loss(StepContext& ctx, ConstTensorView x, TensorView dx);

  // Computes all logits of some rows, on every tp rank.
  //   x       [rows, hidden], the same on every tp rank
  //   logits  [rows, vocab_size] f32
  void logits(StepContext& ctx, ConstTensorView x, TensorView logits) const;

 private:
  void chunk_loss(StepContext& ctx, ConstTensorView x, ConstTensorView targets, TensorView dx);

  int64_t vocab_size_;
  int64_t chunk_tokens_;
  int64_t first_id_;
  Parameter* weight_;  // [local vocab, hidden]
};

}  // namespace switchyard
