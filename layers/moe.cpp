#include "layers/moe.h"

#include "kernels/moe/permute.h"
#include "kernels/moe/slot_products.h"
#include "kernels/runtime/profile.h"

namespace switchyard {

MoeLayer::MoeLayer(const BuildContext& build, const std::string& name, int moe_layer,
                   const ExchangeOptions& exchange)
    : router_(build, name + ".router", moe_layer),
      narrowing_(build, name),
      experts_(build, name + ".experts"),
      exchange_(make_expert_exchange(build.dist.exchange_groups(), build.stream.device(),
                                     build.config.num_experts, exchange)),
      has_all_experts_(build.dist.ep().size() == 1) {
  if (build.config.num_shared_experts > 0) shared_.emplace(build, name);
}

// ---- Forward -----------------------------------------------------------------------------------

void MoeLayer::forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) {
  WorkspaceScope scope(ctx.scratch);
  router_.forward(ctx, x, saved.router);
  if (computes_by_slot(ctx, x)) {
    const Narrowing::Rows rows = narrowing_.descend(ctx, x, y, into_shared(), saved.narrowing);
    if (shared_) shared_->forward(ctx, x, y, saved.shared);
    forward_by_slot(ctx, rows, saved);
    return narrowing_.ascend(ctx, rows.back, y, into_shared());
  }

  // The device descends while the host waits for the plan's counts.
  const bool plans = saved.plan == nullptr;
  if (plans) {
    Workspace& lists = saved.plan_memory ? *saved.plan_memory : ctx.saved;
    saved.plan = exchange_->begin_plan(ctx.stream, lists, ctx.scratch, saved.router.dispatch_idx,
                                       saved.router.topk_weights);
  }
  const Narrowing::Rows rows = narrowing_.descend(ctx, x, y, into_shared(), saved.narrowing);
  if (plans) saved.plan->finish(ctx.stream);

  const Transfers chunks = saved.plan->dispatch(ctx.stream, ctx.scratch, rows.out);
  if (shared_) shared_->forward(ctx, x, y, saved.shared);
  forward_experts(ctx, chunks, saved);

  // Each chunk's result is written or added to y while the next chunk is still on its way back.
  for (const auto& chunk : chunks) {
    chunk->finish(ctx.stream, chunk->token_rows(rows.back));
    narrowing_.ascend(ctx, chunk->token_rows(rows.back), chunk->token_rows(y), into_shared());
  }
}

bool MoeLayer::computes_by_slot(const StepContext& ctx, ConstTensorView x) const {
  return ctx.step && has_all_experts_ && !ctx.stream.device().is_host() &&
         x.dim(0) <= kMostSlotTokens;
}

void MoeLayer::forward_by_slot(StepContext& ctx, const Narrowing::Rows& rows,
                               const Saved& saved) const {
  const TensorView results = ctx.scratch.take(
      {saved.router.dispatch_idx.num_elements(), rows.out.dim(1)}, rows.out.dtype());
  experts_.forward_by_slot(ctx, rows.out, saved.router.dispatch_idx, saved.router.topk_weights,
                           results);
  const ScopedPart part(ctx.stream, Part::moe_exchange);
  sum_rows(ctx.stream, results, /*offsets=*/{}, /*members=*/{}, /*first_row=*/0, rows.back);
}

// Runs the experts on each chunk as it arrives, and sends their results back.
void MoeLayer::forward_experts(StepContext& ctx, const Transfers& chunks, Saved& saved) const {
  saved.experts.resize(chunks.size());
  for (size_t c = 0; c < chunks.size(); ++c) {
    const ExpertRows x = chunks[c]->arrive(ctx.stream, ctx.saved);
    const TensorView y = ctx.scratch.take(x.x.shape(), x.x.dtype());
    experts_.forward(ctx, x, y, saved.experts[c]);
    chunks[c]->leave(ctx.stream, y);
  }
}

// ---- Backward ----------------------------------------------------------------------------------

void MoeLayer::backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx) {
  WorkspaceScope scope(ctx.scratch);
  const Narrowing::Rows drows = narrowing_.backward_ascend(ctx, dy, dx, into_shared());

  // Work that needs no rows of other ranks is done while the rows are under way.
  const Transfers chunks = saved.plan->dispatch(ctx.stream, ctx.scratch, drows.out);
  narrowing_.backward_ascend_weight(ctx, dy, saved.narrowing);
  if (shared_) shared_->backward(ctx, dy, saved.shared, dx);
  const auto dweights = backward_experts(ctx, chunks, saved);

  for (const auto& chunk : chunks) chunk->finish(ctx.stream, chunk->token_rows(drows.back));
  const TensorView dtopk_weights = ctx.scratch.take(saved.router.topk_weights.shape(), DType::f32);
  dweights->finish(ctx.stream, dtopk_weights);
  narrowing_.backward_descend(ctx, drows.back, saved.narrowing, dx, into_shared());
  router_.backward(ctx, dtopk_weights, saved.router, dx);
}

// The gradients of the experts' weights are computed while all chunks are on their way back, with
// the gradients of the router's weights, which are the result.
std::unique_ptr<ValueTransfer> MoeLayer::backward_experts(StepContext& ctx, const Transfers& chunks,
                                                          const Saved& saved) {
  const TensorView dweights = ctx.scratch.take({saved.plan->num_expert_rows()}, DType::f32);
  std::vector<Experts::Grads> grads;
  int64_t first_row = 0;
  for (size_t c = 0; c < chunks.size(); ++c) {
    const TensorView dy = chunks[c]->arrive(ctx.stream, ctx.scratch).x;
    const TensorView dx = ctx.scratch.take(dy.shape(), dy.dtype());
    grads.push_back(experts_.backward_input(ctx, dy, saved.experts[c], dx,
                                            dweights.rows(first_row, dy.dim(0))));
    first_row += dy.dim(0);
    chunks[c]->leave(ctx.stream, dx);
  }
  auto returned = saved.plan->return_values(ctx.stream, ctx.scratch, dweights);
  for (size_t c = 0; c < chunks.size(); ++c) {
    experts_.backward_weight(ctx, grads[c], saved.experts[c]);
  }
  return returned;
}

}  // namespace switchyard
