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
                   build.config.bias == Biases::all, Part::dense_feed_forward);
  }
}

void Block::feed_forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) {
  if (moe_) {
    moe_->forward(ctx, x, y, saved.moe);
  } else {
    dense_->forward(ctx, x, y, saved.dense);
  }
}

ResidualStream Block::forward(StepContext& ctx, const ResidualStream& x, const Updates& updates,
                              Saved& saved) {
  TensorView normed1 = ctx.saved.take(x.sum.shape(), x.sum.dtype());
  norm1_.forward(ctx, x, normed1, saved.norm1);
  attention_.forward(ctx, normed1, updates.attention, saved.attention);
  if (ctx.observer) ctx.observer->observe(ctx, layer_, saved.attention.q, saved.attention.k);

  TensorView normed2 = ctx.saved.take(x.sum.shape(), x.sum.dtype());
  norm2_.forward(ctx, {.sum = saved.norm1.x, .update = updates.attention}, normed2, saved.norm2);
  feed_forward(ctx, normed2, updates.feed_forward, saved);
  return {.sum = saved.norm2.x, .update = updates.feed_forward};
}

void Block::backward(StepContext& ctx, const Saved& saved, TensorView d) {
  WorkspaceScope scope(ctx.scratch);
  TensorView dnormed = ctx.scratch.take(d.shape(), d.dtype());
  if (moe_) {
    moe_->backward(ctx, d, saved.moe, dnormed);
  } else {
    dense_->backward(ctx, d, saved.dense, dnormed);
  }
  norm2_.backward(ctx, dnormed, saved.norm2, d);
  attention_.backward(ctx, d, saved.attention, dnormed);
  norm1_.backward(ctx, dnormed, saved.norm1, d);
}

// The stream changes little from layer to layer, so the stream before the previous block says what
// this block will ask for.
void Block::fetch_ahead(StepContext& ctx, TensorView x, KvCacheLayer& cache) const {
  WorkspaceScope saved_scope(ctx.saved), scope(ctx.scratch);
  NormLayer::Saved saved;
  TensorView normed = ctx.scratch.take(x.shape(), x.dtype());
  norm1_.forward(ctx, {.sum = x, .update = {}}, normed, saved);
  attention_.fetch_ahead(ctx, normed, cache);
}

ResidualStream Block::forward_cached(StepContext& ctx, const ResidualStream& x,
                                     const Updates& updates, KvCacheLayer& cache, const Block* next,
                                     KvCacheLayer* next_cache) {
  WorkspaceScope saved_scope(ctx.saved), scope(ctx.scratch);
  Saved saved;
  TensorView normed = ctx.scratch.take(x.sum.shape(), x.sum.dtype());
  norm1_.forward(ctx, x, normed, saved.norm1);
  if (next && next_cache->offloaded && ctx.step) {
    next->fetch_ahead(ctx, saved.norm1.x, *next_cache);
  }
  attention_.forward_cached(ctx, normed, layer_, cache, updates.attention);
  norm2_.forward(ctx, {.sum = saved.norm1.x, .update = updates.attention}, normed, saved.norm2);
  feed_forward(ctx, normed, updates.feed_forward, saved);
  return {.sum = saved.norm2.x, .update = updates.feed_forward};
}

}  // namespace switchyard
