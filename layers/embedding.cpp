#include "layers/embedding.h"

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/profile.h"
#include "kernels/vocabulary/embedding.h"
#include "layers/decoding/cached_step.h"
#include "layers/sequence_parallel.h"

namespace switchyard {

Embedding::Embedding(const BuildContext& build)
    : hidden_(build.config.hidden),
      first_id_(build.first_vocab_id()),
      table_(&build.vocab_parallel("embedding.weight", build.init_std(),
                                   build.config.tie_embeddings)) {
  if (build.config.position == Position::learned) {
    positions_ = &build.replicated_weight("positions.weight", {build.config.seq_len, hidden_},
                                          build.init_std(), /*hidden_matrices=*/0);
  }
}

// The position of each local token, on the device.
ConstTensorView Embedding::positions_of(const StepContext& ctx) const {
  const int64_t last = (ctx.step ? ctx.step->position : 0) + ctx.batch.seq_len - 1;
  require(last < positions_->value.dim(0),
          "position {} lies beyond the {} learned positions of the model", last,
          positions_->value.dim(0));
  if (ctx.step) return ctx.step->positions.rows(0, ctx.local_tokens());
  std::vector<int32_t> positions(static_cast<size_t>(ctx.local_tokens()));
  int64_t token = ctx.local_range().first_token;
  for (int32_t& position : positions) {
    position = static_cast<int32_t>(token++ % ctx.batch.seq_len);
  }
  return ctx.on_device(std::move(positions));
}

void Embedding::forward(StepContext& ctx, TensorView y) const {
  const ScopedPart part(ctx.stream, Part::embedding);
  WorkspaceScope scope(ctx.scratch);
  TensorView partial = partial_sums_for(ctx, y);
  embedding_forward(ctx.stream, ctx.batch.tokens.view().reshape({ctx.tokens()}), table_->value,
                    first_id_, partial);
  reduce_scatter_tokens(ctx, partial, y);
  if (positions_) {
    TensorView rows = ctx.scratch.take(y.shape(), y.dtype());
    embedding_forward(ctx.stream, positions_of(ctx), positions_->value, 0, rows);
    add(ctx.stream, rows, y);
  }
}

void Embedding::backward(StepContext& ctx, ConstTensorView dy) {
  const ScopedPart part(ctx.stream, Part::embedding);
  WorkspaceScope scope(ctx.scratch);
  embedding_backward(ctx.stream, ctx.scratch, ctx.batch.tokens.view().reshape({ctx.tokens()}),
                     gather_tokens(ctx, dy), first_id_, table_->grad);
  if (positions_) {
    embedding_backward(ctx.stream, ctx.scratch, positions_of(ctx), dy, 0, positions_->grad);
  }
}

}  // namespace switchyard
