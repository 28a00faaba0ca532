#include "layers/moe.h"

#include <cmath>

#include "kernels/elementwise.h"

namespace switchyard {
namespace {

// Descend keeps the scale of x, ascend that of the experts' sum: the experts' own initial weights
// then mean what they mean in the fine-grained twin.
float unit_gain(int64_t in) { return 1.0f / std::sqrt(static_cast<float>(in)); }

}  // namespace

MoeLayer::MoeLayer(const BuildContext& build, const std::string& name, int moe_layer,
                   bool deduplicate)
    : dtype_(build.compute_dtype),
      router_(build, name + ".router", moe_layer),
      experts_(build, name + ".experts"),
      exchange_(std::make_unique<ExpertExchange>(build.dist.ep(), build.config.num_experts,
                                                 deduplicate)) {
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

void MoeLayer::forward_experts(StepContext& ctx, ConstTensorView in, TensorView out,
                               Saved& saved) const {
  ConstTensorView rows, weights;
  {
    Timed timed(ctx.profile, Phase::moe_exchange);
    saved.plan = exchange_->plan(ctx.stream, ctx.workspace, saved.router.dispatch_idx);
    rows = exchange_->dispatch(ctx.stream, ctx.workspace, saved.plan, in);
    weights = exchange_->dispatch_weights(ctx.stream, ctx.workspace, saved.plan,
                                          saved.router.topk_weights);
  }
  saved.experts = experts_.save(ctx, rows, weights);

  WorkspaceScope scope(ctx.workspace);
  TensorView y = ctx.workspace.take(rows.shape(), dtype_);
  experts_.forward(ctx, saved.plan.expert_offsets, saved.experts, y);
  Timed timed(ctx.profile, Phase::moe_exchange);
  exchange_->combine(ctx.stream, ctx.workspace, saved.plan, y, out);
}

void MoeLayer::backward_experts(StepContext& ctx, ConstTensorView dout, const Saved& saved,
                                TensorView din, TensorView dtopk_weights) const {
  WorkspaceScope scope(ctx.workspace);
  TensorView drows = ctx.workspace.take(saved.experts.x.shape(), dtype_);
  TensorView dweights = ctx.workspace.take({drows.dim(0)}, DType::f32);
  ConstTensorView dy;
  {
    Timed timed(ctx.profile, Phase::moe_exchange);
    dy = exchange_->dispatch(ctx.stream, ctx.workspace, saved.plan, dout);
  }
  experts_.backward(ctx, dy, saved.plan.expert_offsets, saved.experts, drows, dweights);
  Timed timed(ctx.profile, Phase::moe_exchange);
  exchange_->combine(ctx.stream, ctx.workspace, saved.plan, drows, din);
  exchange_->combine_weights(ctx.stream, ctx.workspace, saved.plan, dweights, dtopk_weights);
}

void MoeLayer::forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) const {
  saved.x = x;
  router_.forward(ctx, x, saved.router);
  const auto after_shared = shared_ ? Accumulate::yes : Accumulate::no;
  if (shared_) {
    Timed timed(ctx.profile, Phase::moe_dense_products);
    shared_->forward(ctx, x, y, saved.shared);
  }
  if (descend_) {
    // One buffer for what descends and, once that has left, for what comes back.
    saved.narrow = ctx.workspace.take({x.dim(0), latent_}, dtype_);
    {
      Timed timed(ctx.profile, Phase::moe_dense_products);
      descend_->forward(ctx, x, saved.narrow);
    }
    forward_experts(ctx, saved.narrow, saved.narrow, saved);
    Timed timed(ctx.profile, Phase::moe_dense_products);
    ascend_->forward(ctx, saved.narrow, y, after_shared);
  } else if (shared_) {
    TensorView routed = ctx.workspace.take(y.shape(), dtype_);
    forward_experts(ctx, x, routed, saved);
    add(ctx.stream, routed, y);
  } else {
    forward_experts(ctx, x, y, saved);
  }
}

void MoeLayer::backward(StepContext& ctx, ConstTensorView dy, const Saved& saved,
                        TensorView dx) const {
  WorkspaceScope scope(ctx.workspace);
  TensorView dtopk_weights = ctx.workspace.take(saved.router.topk_weights.shape(), DType::f32);
  const auto after_shared = shared_ ? Accumulate::yes : Accumulate::no;
  if (shared_) {
    Timed timed(ctx.profile, Phase::moe_dense_products);
    shared_->backward(ctx, dy, saved.shared, dx);
  }
  if (descend_) {
    // As in the forward pass: first the gradient of the combined rows, then that of the descended.
    TensorView dnarrow = ctx.workspace.take(saved.narrow.shape(), dtype_);
    {
      Timed timed(ctx.profile, Phase::moe_dense_products);
      ascend_->backward(ctx, dy, saved.narrow, dnarrow);
    }
    backward_experts(ctx, dnarrow, saved, dnarrow, dtopk_weights);
    Timed timed(ctx.profile, Phase::moe_dense_products);
    descend_->backward(ctx, dnarrow, saved.x, dx, after_shared);
  } else if (shared_) {
    TensorView drouted = ctx.workspace.take(dx.shape(), dtype_);
    backward_experts(ctx, dy, saved, drouted, dtopk_weights);
    add(ctx.stream, drouted, dx);
  } else {
    backward_experts(ctx, dy, saved, dx, dtopk_weights);
  }
  router_.backward(ctx, dtopk_weights, saved.router, dx);
}

ExchangeTraffic MoeLayer::take_traffic() const { return exchange_->take_traffic(); }

}  // namespace switchyard
