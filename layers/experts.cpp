#include "layers/experts.h"

#include <cmath>

#include "kernels/linear/grouped_activation.h"
#include "kernels/linear/matmul.h"
#include "kernels/moe/slot_products.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

// The square root of how much wider the experts' input is in the fine-grained twin. It scales the
// initial weights so that BigMac's experts begin with the same pre-activations and outputs as the
// twin's.
float width_gain(const ModelConfig& config) {
  return std::sqrt(static_cast<float>(config.hidden) / static_cast<float>(config.exchange_width()));
}

}  // namespace

Experts::Experts(const BuildContext& build, const std::string& name)
    : activation_(build.config.activation),
      width_(build.config.exchange_width()),
      ffn_hidden_(build.config.expert_ffn_hidden),
      up_width_(ffn_hidden_ * (is_gated(activation_) ? 2 : 1)),
      dtype_(build.compute_dtype) {
  const float gain = width_gain(build.config);
  up_ = &build.expert_weight(name + (is_gated(activation_) ? ".gate_up.weight" : ".up.weight"),
                             up_width_, width_, build.init_std() * gain,
                             is_gated(activation_) ? 2 : 1);
  down_ = &build.expert_weight(name + ".down.weight", width_, ffn_hidden_,
                               build.residual_init_std() / gain);
  up_->gradient_is_product = down_->gradient_is_product = true;
}

void Experts::activate(StepContext& ctx, const Saved& saved, TensorView act) const {
  const ScopedPart part(ctx.stream, Part::moe_activation);
  activation_forward(ctx.stream, activation_, saved.up, saved.rows.weights, act);
}

void Experts::forward(StepContext& ctx, const ExpertRows& x, TensorView y, Saved& saved) const {
  WorkspaceScope scope(ctx.scratch);
  saved = {x, ctx.saved.take({x.x.dim(0), up_width_}, dtype_)};
  TensorView act = ctx.scratch.take({x.x.dim(0), ffn_hidden_}, dtype_);
  const bool fused = fuses_activation_forward(ctx.stream, activation_, x.x, up_->value);
  {
    const ScopedPart part(ctx.stream, Part::moe_expert_products);
    if (fused) {
      grouped_activation_forward(ctx.stream, activation_, x.x, up_->value, x.offsets, x.weights,
                                 saved.up, act);
    } else {
      grouped_linear_forward(ctx.stream, x.x, up_->value, x.offsets, saved.up);
    }
  }
  if (!fused) activate(ctx, saved, act);
  const ScopedPart part(ctx.stream, Part::moe_expert_products);
  grouped_linear_forward(ctx.stream, act, down_->value, x.offsets, y);
}

void Experts::forward_by_slot(StepContext& ctx, ConstTensorView x, ConstTensorView dispatch_idx,
                              ConstTensorView weights, TensorView y) const {
  WorkspaceScope scope(ctx.scratch);
  const int64_t slots = dispatch_idx.num_elements();
  const TensorView up = ctx.scratch.take({slots, up_width_}, dtype_);
  const TensorView act = ctx.scratch.take({slots, ffn_hidden_}, dtype_);
  {
    const ScopedPart part(ctx.stream, Part::moe_expert_products);
    slot_products(ctx.stream, x, dispatch_idx, up_->value, up);
  }
  {
    const ScopedPart part(ctx.stream, Part::moe_activation);
    activation_forward(ctx.stream, activation_, up, weights.reshape({slots}), act);
  }
  const ScopedPart part(ctx.stream, Part::moe_expert_products);
  slot_products(ctx.stream, act, dispatch_idx, down_->value, y);
}

Experts::Grads Experts::backward_input(StepContext& ctx, ConstTensorView dy, const Saved& saved,
                                       TensorView dx, TensorView dweights) const {
  const std::span<const int64_t> offsets = saved.rows.offsets;
  Grads grads{.dy = dy, .dup = ctx.scratch.take(saved.up.shape(), dtype_)};
  if (may_fuse_activation_backward(ctx.stream, dy, down_->value)) {
    grads.act = ctx.scratch.take({dy.dim(0), ffn_hidden_}, dtype_);
  }
  if (fuses_activation_backward(ctx.stream, dy, down_->value)) {
    const ScopedPart part(ctx.stream, Part::moe_expert_products);
    grouped_activation_backward(ctx.stream, ctx.scratch, activation_, dy, down_->value, offsets,
                                saved.up, saved.rows.weights, grads.dup, dweights, grads.act);
    grads.act_is_computed = true;
  } else {
    activation_gradient(ctx, grads, saved, dweights);
  }
  const ScopedPart part(ctx.stream, Part::moe_expert_products);
  grouped_linear_backward_input(ctx.stream, grads.dup, up_->value, offsets, dx);
  return grads;
}

TensorView Experts::memory_of_act(StepContext& ctx, const Grads& grads) const {
  return grads.act ? grads.act : ctx.scratch.take({grads.dy.dim(0), ffn_hidden_}, dtype_);
}

void Experts::activation_gradient(StepContext& ctx, const Grads& grads, const Saved& saved,
                                  TensorView dweights) const {
  WorkspaceScope scope(ctx.scratch);
  const TensorView dact = memory_of_act(ctx, grads);
  count_grouped_activation_backward(ctx.stream, ctx.scratch, grads.dy, down_->value);
  {
    const ScopedPart part(ctx.stream, Part::moe_expert_products);
    grouped_linear_backward_input(ctx.stream, grads.dy, down_->value, saved.rows.offsets, dact);
  }
  const ScopedPart part(ctx.stream, Part::moe_activation);
  activation_backward(ctx.stream, activation_, dact, saved.up, saved.rows.weights, grads.dup,
                      dweights);
}

// Where no product computes the activation on its way, it is computed again rather than kept: it is
// cheap.
void Experts::backward_weight(StepContext& ctx, const Grads& grads, const Saved& saved) {
  const std::span<const int64_t> offsets = saved.rows.offsets;
  WorkspaceScope scope(ctx.scratch);
  const TensorView act = memory_of_act(ctx, grads);
  if (!grads.act_is_computed) activate(ctx, saved, act);
  const ScopedPart part(ctx.stream, Part::moe_expert_products);
  grouped_linear_backward_weight(ctx.stream, grads.dy, act, offsets, down_->begin_gradient(),
                                 down_->grad);
  grouped_linear_backward_weight(ctx.stream, grads.dup, saved.rows.x, offsets,
                                 up_->begin_gradient(), up_->grad);
}

}  // namespace switchyard
