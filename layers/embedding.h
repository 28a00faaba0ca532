#pragma once

#include <cstdint>
#include <vector>

#include "layers/build_context.h"
#include "layers/step_context.h"

namespace switchyard {

// The token embedding, whose vocabulary is split over tp, and learned positions where the model has
// them.
class Embedding {
 public:
  explicit Embedding(const BuildContext& build);

  // Token t of each sequence stands at position t, or where ctx.step says.
  //   y  [local_tokens, hidden]
  void forward(StepContext& ctx, TensorView y) const;
  //   dy [local_tokens, hidden]
  void backward(StepContext& ctx, ConstTensorView dy);

  // [local vocab, hidden]; also the head's weight where embeddings are tied
  Parameter& table() const { return *table_; }

 private:
  ConstTensorView positions_of(const StepContext& ctx) const;

  int64_t hidden_;
  int64_t first_id_;
  Parameter* table_;
  Parameter* positions_ = nullptr;  // [seq_len, hidden], replicated; position: learned
};

}  // namespace switchyard
