#include "layers/narrowing.h"

#include <cmath>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

// With this standard deviation descend keeps the scale of x, and ascend that of the experts' sum,
// so the experts' initial weights have the same effect as in the fine-grained twin.
float unit_gain(int64_t in) { return 1.0f / std::sqrt(static_cast<float>(in)); }

}  // namespace

Narrowing::Narrowing(const BuildContext& build, const std::string& name) {
  const ModelConfig& c = build.config;
  if (c.structure != Structure::bigmac) return;
  latent_ = c.latent;
  descend_ =
      Linear(build.store, {&build.replicated_weight(name + ".descend.weight", {latent_, c.hidden},
                                                    unit_gain(c.hidden))});
  ascend_ = Linear(
      build.store,
      {&build.replicated_weight(name + ".ascend.weight", {c.hidden, latent_}, unit_gain(latent_))});
}

// Without BigMac, rows come back into `to` itself, unless they are added to it.
TensorView Narrowing::place_for_return(StepContext& ctx, TensorView to,
                                       Accumulate accumulate) const {
  return accumulate == Accumulate::yes ? ctx.scratch.take(to.shape(), to.dtype()) : to;
}

void Narrowing::join(StepContext& ctx, ConstTensorView back, TensorView to,
                     Accumulate accumulate) const {
  if (accumulate == Accumulate::yes) add(ctx.stream, back, to);
}

Narrowing::Rows Narrowing::descend(StepContext& ctx, ConstTensorView x, TensorView y,
                                   Accumulate into_y, Saved& saved) const {
  saved.x = x;
  if (!descend_) return {x, place_for_return(ctx, y, into_y)};
  const ScopedPart part(ctx.stream, Part::moe_narrowing);
  saved.latent = ctx.saved.take({x.dim(0), latent_}, x.dtype());
  descend_->forward(ctx, x, saved.latent);
  return {saved.latent, saved.latent};
}

void Narrowing::ascend(StepContext& ctx, ConstTensorView back, TensorView y,
                       Accumulate into_y) const {
  if (!ascend_) return join(ctx, back, y, into_y);
  const ScopedPart part(ctx.stream, Part::moe_narrowing);
  ascend_->forward(ctx, back, y, into_y);
}

Narrowing::Rows Narrowing::backward_ascend(StepContext& ctx, ConstTensorView dy, TensorView dx,
                                           Accumulate into_dx) const {
  if (!ascend_) return {dy, place_for_return(ctx, dx, into_dx)};
  const ScopedPart part(ctx.stream, Part::moe_narrowing);
  const TensorView dlatent = ctx.scratch.take({dy.dim(0), latent_}, dy.dtype());
  ascend_->backward_input(ctx, dy, dlatent);
  return {dlatent, dlatent};
}

void Narrowing::backward_ascend_weight(StepContext& ctx, ConstTensorView dy, const Saved& saved) {
  if (!ascend_) return;
  const ScopedPart part(ctx.stream, Part::moe_narrowing);
  ascend_->backward_weight(ctx, dy, saved.latent);
}

void Narrowing::backward_descend(StepContext& ctx, ConstTensorView back, const Saved& saved,
                                 TensorView dx, Accumulate into_dx) {
  if (!descend_) return join(ctx, back, dx, into_dx);
  const ScopedPart part(ctx.stream, Part::moe_narrowing);
  descend_->backward(ctx, back, saved.x, dx, into_dx);
}

}  // namespace switchyard
