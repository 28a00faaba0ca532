#include "layers/moe.h"

#include <cmath>

#include "kernels/basic/elementwise.h"

namespace switchyard {
namespace {

// Descend keeps the scale of x, ascend that of the experts' sum: the experts' own initial weights
// then mean what they mean in the fine-grained twin.
float unit_gain(int64_t in) { return 1.0f / std::sqrt(static_cast<float>(in)); }

}  // namespace

struct MoeLayer::ExpertGradients {
  TensorView dy;        // [expert_rows, width] of what the experts gave
  TensorView dx;        // [expert_rows, width] of what they read
  TensorView dweights;  // [expert_rows] f32
  Experts::Inner inner;
};

MoeLayer::MoeLayer(const BuildContext& build, const std::string& name, int moe_layer,
                   const ExchangeOptions& exchange)
    : dtype_(build.compute_dtype),
      router_(build, name + ".router", moe_layer),
      experts_(build, name + ".experts"),
      exchange_(std::make_unique<ExpertExchange>(build.dist.ep(), build.stream.device(),
                                                 build.config.num_experts, exchange)) {
  const ModelConfig& c = build.config;
  if (c.structure == Structure::bigmac) {
    latent_ = c.latent;
    descend_ =
        Linear(build.store, {&build.replicated_weight(name + ".descend.weight", {latent_, c.hidden},
                                                      unit_gain(c.hidden))});
    ascend_ =
        Linear(build.store, {&build.replicated_weight(name + ".ascend.weight", {c.hidden, latent_},
                                                      unit_gain(latent_))});
  }
  if (c.num_shared_experts > 0) {
    // Side by side, the shared experts are one feed-forward of their joint width.
    shared_.emplace(build, name + ".shared", c.num_shared_experts * c.shared_expert_ffn_hidden,
                    /*bias=*/false);
  }
}

std::vector<ChunkTransfer> MoeLayer::start_dispatch(StepContext& ctx, const ExchangePlan& plan,
                                                    ConstTensorView in,
                                                    ConstTensorView weights) const {
  Timed timed(ctx.profiler, Phase::moe_exchange);
  auto transfers = exchange_->transfers(ctx.workspace, plan, in.dim(1), dtype_);
  for (ChunkTransfer& transfer : transfers) {
    const ExchangeChunk& chunk = transfer.chunk();
    transfer.start_dispatch(ctx.stream, chunk.token_rows(in), chunk.token_rows(weights));
  }
  return transfers;
}

// ---- Forward -----------------------------------------------------------------------------------

void MoeLayer::forward_experts(StepContext& ctx, const Saved& saved,
                               std::vector<ChunkTransfer>& transfers, TensorView y) const {
  for (ChunkTransfer& transfer : transfers) {
    const ExchangeChunk& chunk = transfer.chunk();
    const Experts::Saved rows = saved.experts.of(chunk);
    {
      Timed timed(ctx.profiler, Phase::moe_exchange);
      transfer.finish_dispatch(ctx.stream, rows.x, rows.weights);
    }
    experts_.forward(ctx, chunk.expert_offsets, rows, chunk.of_experts(y));
    Timed timed(ctx.profiler, Phase::moe_exchange);
    transfer.start_combine(ctx.stream, chunk.of_experts(y));
  }
}

// What comes back joins y, each chunk behind the way of the next.
//   routed  [local_tokens, width]: where it comes back to; may be y
void MoeLayer::finish_forward(StepContext& ctx, std::vector<ChunkTransfer>& transfers,
                              TensorView routed, TensorView y) const {
  for (ChunkTransfer& transfer : transfers) {
    const ExchangeChunk& chunk = transfer.chunk();
    const TensorView back = chunk.token_rows(routed), out = chunk.token_rows(y);
    {
      Timed timed(ctx.profiler, Phase::moe_exchange);
      transfer.finish_combine(ctx.stream, back);
    }
    if (descend_) {
      Timed timed(ctx.profiler, Phase::moe_dense_products);
      ascend_->forward(ctx, back, out, shared_ ? Accumulate::yes : Accumulate::no);
    } else if (shared_) {
      add(ctx.stream, back, out);
    }
  }
}

void MoeLayer::forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) const {
  saved.x = x;
  router_.forward(ctx, x, saved.router);
  {
    Timed timed(ctx.profiler, Phase::moe_exchange);
    saved.plan = exchange_->begin_plan(ctx.stream, ctx.workspace, saved.router.dispatch_idx);
  }
  if (descend_) {
    // The device descends while the host waits for the plan's counts. One buffer for what descends
    // and, once that has left, for what comes back.
    Timed timed(ctx.profiler, Phase::moe_dense_products);
    saved.narrow = ctx.workspace.take({x.dim(0), latent_}, dtype_);
    descend_->forward(ctx, x, saved.narrow);
  }
  {
    Timed timed(ctx.profiler, Phase::moe_exchange);
    exchange_->finish_plan(ctx.stream, ctx.workspace, saved.plan);
  }
  if (shared_) saved.shared = shared_->save(ctx, x);
  saved.experts = experts_.save(ctx, saved.plan.expert_rows());

  WorkspaceScope scope(ctx.workspace);
  const TensorView routed = descend_  ? saved.narrow
                            : shared_ ? ctx.workspace.take(y.shape(), dtype_)
                                      : y;
  auto transfers =
      start_dispatch(ctx, saved.plan, descend_ ? saved.narrow : x, saved.router.topk_weights);
  if (shared_) {
    Timed timed(ctx.profiler, Phase::moe_dense_products);
    shared_->forward(ctx, saved.shared, y);
  }
  TensorView expert_y = ctx.workspace.take(saved.experts.x.shape(), dtype_);
  forward_experts(ctx, saved, transfers, expert_y);
  finish_forward(ctx, transfers, routed, y);
}

// ---- Backward ----------------------------------------------------------------------------------

void MoeLayer::backward_experts(StepContext& ctx, const Saved& saved,
                                std::vector<ChunkTransfer>& transfers,
                                const ExpertGradients& gradients) const {
  for (ChunkTransfer& transfer : transfers) {
    const ExchangeChunk& chunk = transfer.chunk();
    const TensorView dy = chunk.of_experts(gradients.dy), dx = chunk.of_experts(gradients.dx);
    const TensorView dweights = chunk.of_experts(gradients.dweights);
    {
      Timed timed(ctx.profiler, Phase::moe_exchange);
      transfer.finish_dispatch(ctx.stream, dy);
    }
    experts_.backward_input(ctx, dy, chunk.expert_offsets, saved.experts.of(chunk),
                            gradients.inner.of(chunk), dx, dweights);
    Timed timed(ctx.profiler, Phase::moe_exchange);
    transfer.start_combine(ctx.stream, dx, dweights);
  }
  for (const ExchangeChunk& chunk : saved.plan.chunks) {
    experts_.backward_weight(ctx, chunk.of_experts(gradients.dy), chunk.expert_offsets,
                             saved.experts.of(chunk), gradients.inner.of(chunk));
  }
}

// `drouted` holds the gradient of the experts' sums unless dy is that, and then that of what the
// experts read. What needs no rows of other ranks happens while they travel.
void MoeLayer::backward_routed(StepContext& ctx, ConstTensorView dy, const Saved& saved,
                               TensorView dx, TensorView drouted, TensorView dtopk_weights) const {
  WorkspaceScope scope(ctx.workspace);
  const int64_t rows = saved.plan.expert_rows();
  const ExpertGradients gradients{.dy = ctx.workspace.take(saved.experts.x.shape(), dtype_),
                                  .dx = ctx.workspace.take(saved.experts.x.shape(), dtype_),
                                  .dweights = ctx.workspace.take({rows}, DType::f32),
                                  .inner = experts_.take_inner(ctx, rows)};
  auto transfers = start_dispatch(ctx, saved.plan, descend_ ? drouted : dy, {});
  {
    Timed timed(ctx.profiler, Phase::moe_dense_products);
    if (descend_) ascend_->backward_weight(ctx, dy, saved.narrow);
    if (shared_) shared_->backward(ctx, dy, saved.shared, dx);
  }
  backward_experts(ctx, saved, transfers, gradients);
  Timed timed(ctx.profiler, Phase::moe_exchange);
  for (ChunkTransfer& transfer : transfers) {
    const ExchangeChunk& chunk = transfer.chunk();
    transfer.finish_combine(ctx.stream, chunk.token_rows(drouted), chunk.token_rows(dtopk_weights));
  }
}

void MoeLayer::backward(StepContext& ctx, ConstTensorView dy, const Saved& saved,
                        TensorView dx) const {
  WorkspaceScope scope(ctx.workspace);
  TensorView dtopk_weights = ctx.workspace.take(saved.router.topk_weights.shape(), DType::f32);
  TensorView drouted = dx;
  if (descend_) {
    Timed timed(ctx.profiler, Phase::moe_dense_products);
    drouted = ctx.workspace.take(saved.narrow.shape(), dtype_);
    ascend_->backward_input(ctx, dy, drouted);
  } else if (shared_) {
    drouted = ctx.workspace.take(dx.shape(), dtype_);
  }
  backward_routed(ctx, dy, saved, dx, drouted, dtopk_weights);
  if (descend_) {
    Timed timed(ctx.profiler, Phase::moe_dense_products);
    descend_->backward(ctx, drouted, saved.x, dx, shared_ ? Accumulate::yes : Accumulate::no);
  } else if (shared_) {
    add(ctx.stream, drouted, dx);
  }
  router_.backward(ctx, dtopk_weights, saved.router, dx);
}

ExchangeTraffic MoeLayer::take_traffic() const { return exchange_->take_traffic(); }

}  // namespace switchyard
