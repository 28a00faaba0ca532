#include "layers/feed_forward.h"

#include "kernels/basic/elementwise.h"
#include "layers/sequence_parallel.h"

namespace switchyard {
namespace {

Linear make_up(const BuildContext& build, const std::string& name, int64_t ffn_hidden, bool bias) {
  const int64_t hidden = build.config.hidden;
  std::vector<Parameter*> weights, biases;
  const auto add = [&](const std::string& part) {
    weights.push_back(
        &build.column_parallel(name + part + ".weight", ffn_hidden, hidden, build.init_std()));
  };
  if (is_gated(build.config.activation)) add(".gate");
  add(".up");
  if (bias) {
    if (is_gated(build.config.activation)) {
      biases.push_back(&build.sharded_vector(name + ".gate.bias", ffn_hidden, Init::zeros()));
    }
    biases.push_back(&build.sharded_vector(name + ".up.bias", ffn_hidden, Init::zeros()));
  }
  return Linear(build.store, std::move(weights), std::move(biases));
}

// [tokens], or empty without factors.
ConstTensorView factors_of_all(StepContext& ctx, ConstTensorView factors) {
  return factors ? gather_tokens(ctx, factors).reshape({ctx.tokens()}) : factors;
}

}  // namespace

FeedForward::FeedForward(const BuildContext& build, const std::string& name, int64_t ffn_hidden,
                         bool bias, Part part)
    : part_(part),
      activation_(build.config.activation),
      local_ffn_hidden_(ffn_hidden / build.dist.tp().size()),
      dtype_(build.compute_dtype),
      up_(make_up(build, name, ffn_hidden, bias)),
      down_(build.store, {&build.row_parallel(name + ".down.weight", build.config.hidden,
                                              ffn_hidden, build.residual_init_std())}) {
  if (bias) {
    down_bias_ = &build.replicated_vector(name + ".down.bias", build.config.hidden, Init::zeros());
  }
}

void FeedForward::forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved,
                          ConstTensorView factors) const {
  const ScopedPart part(ctx.stream, part_);
  WorkspaceScope scope(ctx.scratch);
  saved = {x, factors, ctx.saved.take({ctx.tokens(), up_.out_features()}, dtype_)};
  up_.forward(ctx, gather_tokens(ctx, x), saved.up);
  TensorView act = ctx.scratch.take({ctx.tokens(), local_ffn_hidden_}, dtype_);
  activation_forward(ctx.stream, activation_, saved.up, factors_of_all(ctx, factors), act);
  TensorView partial = partial_sums_for(ctx, y);
  down_.forward(ctx, act, partial);
  reduce_scatter_tokens(ctx, partial, y);
  if (down_bias_) add_bias(ctx.stream, down_bias_->value, y);
}

void FeedForward::backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx,
                           TensorView dfactors) {
  const ScopedPart part(ctx.stream, part_);
  WorkspaceScope scope(ctx.scratch);
  if (down_bias_) add_bias_backward(ctx.stream, ctx.scratch, dy, down_bias_->grad);
  ConstTensorView dy_all = gather_tokens(ctx, dy);
  // The activation is cheap: it is computed again rather than kept.
  const ConstTensorView factors = factors_of_all(ctx, saved.factors);
  TensorView act = ctx.scratch.take({ctx.tokens(), local_ffn_hidden_}, dtype_);
  activation_forward(ctx.stream, activation_, saved.up, factors, act);
  TensorView dact = ctx.scratch.take(act.shape(), dtype_);
  down_.backward(ctx, dy_all, act, dact);
  TensorView dup = ctx.scratch.take(saved.up.shape(), dtype_);
  TensorView partial_dfactors;  // of this rank's part of the inner width
  if (factors) partial_dfactors = partial_sums_for(ctx, dfactors);
  activation_backward(ctx.stream, activation_, dact, saved.up, factors, dup,
                      factors ? partial_dfactors.reshape({ctx.tokens()}) : partial_dfactors);
  if (factors) reduce_scatter_tokens(ctx, partial_dfactors, dfactors);

  ConstTensorView x = gather_tokens(ctx, saved.x);
  TensorView partial = partial_sums_for(ctx, dx);
  up_.backward(ctx, dup, x, partial);
  reduce_scatter_tokens(ctx, partial, dx);
}

}  // namespace switchyard
