#include "layers/block.h"

#include <fmt/format.h>

#include "layers/attention_observer.h"

namespace switchyard {
namespace {

std::string layer_name(int layer) { return fmt::format("layers.{}", layer); }

}  // namespace

Block::Block(const BuildContext& build, int layer, int moe_layer, const ExchangeOptions& exchange)
    : layer_(layer),
      norm1_(build, layer_name(layer) + ".norm1"),
      attention_(build, layer_name(layer) + ".attention"),
      norm2_(build, layer_name(layer) + ".norm2") {
  if (build.config.is_moe_layer(layer)) {
    moe_.emplace(build, layer_name(layer) + ".moe", moe_layer, exchange);
  } else {
    dense_.emplace(build, layer_name(layer) + ".feed_forward", build.config.ffn_hidden,
                   build.config.bias);
  }
}

// The sum overwrites delta, which nothing else reads.
void Block::normalize(StepContext& ctx, const NormLayer& norm, const ResidualStream& in,
                      TensorView y, NormLayer::Saved& saved) const {
  Timed timed(ctx.profiler, Phase::norms);
  norm.forward(ctx, in.residual, in.delta, in.delta, y, saved);
}

void Block::feed_forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) const {
  if (moe_) {
    moe_->forward(ctx, x, y, saved.moe);
  } else {
    Timed timed(ctx.profiler, Phase::dense_feed_forward);
    saved.dense = dense_->save(ctx, x);
    dense_->forward(ctx, saved.dense, y);
  }
}

void Block::forward(StepContext& ctx, const ResidualStream& in, const ResidualStream& out,
                    Saved& saved) const {
  const Shape shape = in.residual.shape();
  TensorView normed1 = ctx.workspace.take(shape, in.residual.dtype());
  TensorView normed2 = ctx.workspace.take(shape, in.residual.dtype());
  normalize(ctx, norm1_, in, normed1, saved.norm1);
  const TensorView sum1 = in.delta ? in.delta : in.residual;
  {
    Timed timed(ctx.profiler, Phase::attention);
    attention_.forward(ctx, normed1, out.residual, saved.attention);
  }
  if (ctx.observer) ctx.observer->observe(ctx, layer_, saved.attention.q, saved.attention.k);
  normalize(ctx, norm2_, {sum1, out.residual}, normed2, saved.norm2);
  feed_forward(ctx, normed2, out.delta, saved);
}

void Block::backward(StepContext& ctx, const Saved& saved, TensorView d) const {
  WorkspaceScope scope(ctx.workspace);
  TensorView dnormed = ctx.workspace.take(d.shape(), d.dtype());
  if (moe_) {
    moe_->backward(ctx, d, saved.moe, dnormed);
  } else {
    Timed timed(ctx.profiler, Phase::dense_feed_forward);
    dense_->backward(ctx, d, saved.dense, dnormed);
  }
  {
    Timed timed(ctx.profiler, Phase::norms);
    norm2_.backward(ctx, dnormed, saved.norm2, d);
  }
  {
    Timed timed(ctx.profiler, Phase::attention);
    attention_.backward(ctx, d, saved.attention, dnormed);
  }
  Timed timed(ctx.profiler, Phase::norms);
  norm1_.backward(ctx, dnormed, saved.norm1, d);
}

void Block::forward_cached(StepContext& ctx, const ResidualStream& in, const ResidualStream& out,
                           int64_t first_position, KvCacheLayer& cache) const {
  WorkspaceScope scope(ctx.workspace);
  Saved saved;
  TensorView normed = ctx.workspace.take(in.residual.shape(), in.residual.dtype());
  normalize(ctx, norm1_, in, normed, saved.norm1);
  const TensorView sum1 = in.delta ? in.delta : in.residual;
  attention_.forward_cached(ctx, normed, first_position, cache, out.residual);
  normalize(ctx, norm2_, {sum1, out.residual}, normed, saved.norm2);
  feed_forward(ctx, normed, out.delta, saved);
}

}  // namespace switchyard
