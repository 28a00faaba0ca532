#include "layers/experts.h"

#include <cmath>

#include "kernels/matmul.h"

namespace switchyard {
namespace {

// sqrt of how much wider the experts' input is in the fine-grained twin. Initial weights are scaled
// so that BigMac's experts begin with the same pre-activations and outputs as its twin's.
float width_gain(const ModelConfig& config) {
  return std::sqrt(static_cast<float>(config.hidden) / static_cast<float>(config.exchange_width()));
}

}  // namespace

Experts::Experts(const BuildContext& build, const std::string& name)
    : activation_(build.config.activation),
      ffn_hidden_(build.config.expert_ffn_hidden),
      up_width_(ffn_hidden_ * (is_gated(activation_) ? 2 : 1)),
      dtype_(build.compute_dtype) {
  const int64_t width = build.config.exchange_width();
  const float gain = width_gain(build.config);
  up_ = &build.expert_weight(name + (is_gated(activation_) ? ".gate_up.weight" : ".up.weight"),
                             up_width_, width, build.init_std() * gain);
  down_ = &build.expert_weight(name + ".down.weight", width, ffn_hidden_,
                               build.residual_init_std() / gain);
}

void Experts::activate(StepContext& ctx, const Saved& saved, TensorView act) const {
  Timed timed(ctx.profile, Phase::moe_activation);
  activation_forward(ctx.stream, activation_, saved.up, saved.weights, act);
}

Experts::Saved Experts::save(StepContext& ctx, ConstTensorView x, ConstTensorView weights) const {
  return {x, weights, ctx.workspace.take({x.dim(0), up_width_}, dtype_)};
}

void Experts::forward(StepContext& ctx, std::span<const int64_t> row_offsets, const Saved& saved,
                      TensorView y) const {
  WorkspaceScope scope(ctx.workspace);
  TensorView act = ctx.workspace.take({saved.x.dim(0), ffn_hidden_}, dtype_);
  {
    Timed timed(ctx.profile, Phase::moe_expert_products);
    grouped_linear_forward(ctx.stream, saved.x, up_->value, row_offsets, saved.up);
  }
  activate(ctx, saved, act);
  Timed timed(ctx.profile, Phase::moe_expert_products);
  grouped_linear_forward(ctx.stream, act, down_->value, row_offsets, y);
}

void Experts::backward(StepContext& ctx, ConstTensorView dy, std::span<const int64_t> row_offsets,
                       const Saved& saved, TensorView dx, TensorView dweights) const {
  WorkspaceScope scope(ctx.workspace);
  TensorView act = ctx.workspace.take({dy.dim(0), ffn_hidden_}, dtype_);
  TensorView dact = ctx.workspace.take(act.shape(), dtype_);
  TensorView dup = ctx.workspace.take(saved.up.shape(), dtype_);
  activate(ctx, saved, act);
  {
    Timed timed(ctx.profile, Phase::moe_expert_products);
    grouped_linear_backward_weight(ctx.stream, dy, act, row_offsets, down_->grad);
    grouped_linear_backward_input(ctx.stream, dy, down_->value, row_offsets, dact);
  }
  {
    Timed timed(ctx.profile, Phase::moe_activation);
    activation_backward(ctx.stream, activation_, dact, saved.up, saved.weights, dup, dweights);
  }
  Timed timed(ctx.profile, Phase::moe_expert_products);
  grouped_linear_backward_weight(ctx.stream, dup, saved.x, row_offsets, up_->grad);
  grouped_linear_backward_input(ctx.stream, dup, up_->value, row_offsets, dx);
}

}  // namespace switchyard
