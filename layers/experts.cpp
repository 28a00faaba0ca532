#include "layers/experts.h"

#include <cmath>

#include "kernels/linear/matmul.h"

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
}

void Experts::activate(StepContext& ctx, const Saved& saved, TensorView act) const {
  Timed timed(ctx.profiler, Phase::moe_activation);
  activation_forward(ctx.stream, activation_, saved.up, saved.weights, act);
}

Experts::Saved Experts::save(StepContext& ctx, int64_t rows) const {
  return {ctx.workspace.take({rows, width_}, dtype_), ctx.workspace.take({rows}, DType::f32),
          ctx.workspace.take({rows, up_width_}, dtype_)};
}

Experts::Inner Experts::take_inner(StepContext& ctx, int64_t rows) const {
  return {ctx.workspace.take({rows, ffn_hidden_}, dtype_),
          ctx.workspace.take({rows, up_width_}, dtype_)};
}

void Experts::forward(StepContext& ctx, std::span<const int64_t> row_offsets, const Saved& saved,
                      TensorView y) const {
  WorkspaceScope scope(ctx.workspace);
  TensorView act = ctx.workspace.take({saved.x.dim(0), ffn_hidden_}, dtype_);
  {
    Timed timed(ctx.profiler, Phase::moe_expert_products);
    grouped_linear_forward(ctx.stream, saved.x, up_->value, row_offsets, saved.up);
  }
  activate(ctx, saved, act);
  Timed timed(ctx.profiler, Phase::moe_expert_products);
  grouped_linear_forward(ctx.stream, act, down_->value, row_offsets, y);
}

void Experts::backward_input(StepContext& ctx, ConstTensorView dy,
                             std::span<const int64_t> row_offsets, const Saved& saved,
                             const Inner& inner, TensorView dx, TensorView dweights) const {
  WorkspaceScope scope(ctx.workspace);
  TensorView dact = ctx.workspace.take(inner.act.shape(), dtype_);
  {
    Timed timed(ctx.profiler, Phase::moe_expert_products);
    grouped_linear_backward_input(ctx.stream, dy, down_->value, row_offsets, dact);
  }
  {
    Timed timed(ctx.profiler, Phase::moe_activation);
    activation_backward(ctx.stream, activation_, dact, saved.up, saved.weights, inner.dup,
                        dweights);
  }
  Timed timed(ctx.profiler, Phase::moe_expert_products);
  grouped_linear_backward_input(ctx.stream, inner.dup, up_->value, row_offsets, dx);
}

// The activation is cheap: computed again rather than kept.
void Experts::backward_weight(StepContext& ctx, ConstTensorView dy,
                              std::span<const int64_t> row_offsets, const Saved& saved,
                              const Inner& inner) const {
  activate(ctx, saved, inner.act);
  Timed timed(ctx.profiler, Phase::moe_expert_products);
  grouped_linear_backward_weight(ctx.stream, dy, inner.act, row_offsets, down_->grad);
  grouped_linear_backward_weight(ctx.stream, inner.dup, saved.x, row_offsets, up_->grad);
}

}  // namespace switchyard
