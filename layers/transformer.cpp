#include "layers/transformer.h"

#include "kernels/basic/elementwise.h"
#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "layers/sequence_parallel.h"

namespace switchyard {

// What the forward pass leaves for the backward pass.
struct Transformer::Pass {
  std::vector<Block::Saved> blocks;      // without recomputation
  std::vector<TensorView> block_inputs;  // with it: the residual stream before each block, as a sum
  NormLayer::Saved final_norm;
  TensorView normed;  // [local_tokens, hidden] what the head reads
};

Transformer::Transformer(Stream& stream, const ModelConfig& config, const DistributedContext& dist,
                         const TransformerOptions& options)
    : config_(config),
      dist_(dist),
      options_(options),
      device_(stream.device()),
      store_(std::make_unique<ParameterStore>(options.bucket_elements)) {
  const BuildContext build{stream, *store_, config_, dist_, options_.compute_dtype};
  embedding_ = std::make_unique<Embedding>(build);
  blocks_.reserve(static_cast<size_t>(config_.num_layers));
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    store_->begin_stage();
    blocks_.emplace_back(build, layer, num_moe_layers_, options_.exchange);
    if (config_.is_moe_layer(layer)) ++num_moe_layers_;
  }
  store_->begin_stage();
  final_norm_ = std::make_unique<NormLayer>(build, "norm");
  head_ = std::make_unique<LmHead>(build, embedding_->table());
  store_->materialize(stream, options_.seed, dist_.world().size());
}

ResidualStream Transformer::take_stream(StepContext& ctx) const {
  const Shape shape{ctx.local_tokens(), config_.hidden};
  return {ctx.workspace.take(shape, options_.compute_dtype),
          ctx.workspace.take(shape, options_.compute_dtype)};
}

void Transformer::forward_blocks(StepContext& ctx, Pass& pass) const {
  const Shape shape{ctx.local_tokens(), config_.hidden};
  const DType dtype = options_.compute_dtype;
  pass.normed = ctx.workspace.take(shape, dtype);
  ResidualStream stream{ctx.workspace.take(shape, dtype), {}};
  embedding_->forward(ctx, /*first_position=*/0, stream.residual);

  if (options_.recompute) {
    // A block's first norm turns `delta` into the sum, which is the block's input for the second
    // time; of `residual` only the newest two are needed.
    const TensorView residuals[2] = {ctx.workspace.take(shape, dtype),
                                     ctx.workspace.take(shape, dtype)};
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const ResidualStream out{residuals[i % 2], ctx.workspace.take(shape, dtype)};
      WorkspaceScope scope(ctx.workspace);
      Block::Saved saved;
      blocks_[i].forward(ctx, stream, out, saved);
      pass.block_inputs.push_back(stream.delta ? stream.delta : stream.residual);
      stream = out;
    }
  } else {
    pass.blocks.resize(blocks_.size());
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const ResidualStream out = take_stream(ctx);
      blocks_[i].forward(ctx, stream, out, pass.blocks[i]);
      stream = out;
    }
  }
  Timed timed(ctx.profiler, Phase::norms);
  final_norm_->forward(ctx, stream.residual, stream.delta, stream.delta, pass.normed,
                       pass.final_norm);
}

// Each block's tensors are given back before the next: for passes without gradients.
void Transformer::forward_blocks_without_saving(StepContext& ctx, TensorView normed) const {
  const ResidualStream streams[2] = {take_stream(ctx), take_stream(ctx)};
  ResidualStream stream{streams[1].residual, {}};
  embedding_->forward(ctx, /*first_position=*/0, stream.residual);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    WorkspaceScope scope(ctx.workspace);
    Block::Saved saved;
    blocks_[i].forward(ctx, stream, streams[i % 2], saved);
    stream = streams[i % 2];
  }
  WorkspaceScope scope(ctx.workspace);
  NormLayer::Saved saved;
  final_norm_->forward(ctx, stream.residual, stream.delta, stream.delta, normed, saved);
}

void Transformer::recompute_backward(StepContext& ctx, const Block& block, TensorView input,
                                     TensorView d) const {
  WorkspaceScope scope(ctx.workspace);
  StepContext again = ctx;
  again.statistics = nullptr;  // counted in the forward pass
  again.observer = nullptr;    // seen there, too
  Block::Saved saved;
  const ResidualStream out = take_stream(ctx);
  block.forward(again, {input, {}}, out, saved);
  block.backward(ctx, saved, d);
}

// Stage 0 is the embedding, stage i + 1 block i, the last one the final norm and the head.
void Transformer::finish_stage(StepContext& ctx, size_t stage) const {
  if (ctx.gradients_are_final) ctx.gradients_are_final(static_cast<int>(stage));
}

void Transformer::backward_blocks(StepContext& ctx, const Pass& pass, TensorView d) const {
  finish_stage(ctx, blocks_.size() + 1);
  for (size_t i = blocks_.size(); i-- > 0;) {
    if (options_.recompute) {
      recompute_backward(ctx, blocks_[i], pass.block_inputs[i], d);
    } else {
      blocks_[i].backward(ctx, pass.blocks[i], d);
    }
    finish_stage(ctx, i + 1);
  }
}

void Transformer::forward_backward(StepContext& ctx) const {
  ctx.dist.set_phase("forward");
  if (ctx.statistics) ctx.statistics->forward.start(ctx.stream);
  Pass pass;
  forward_blocks(ctx, pass);

  TensorView dnormed = ctx.workspace.take(pass.normed.shape(), options_.compute_dtype);
  head_->loss(ctx, pass.normed, dnormed);

  ctx.dist.set_phase("backward");
  if (ctx.statistics) {
    ctx.statistics->forward.stop(ctx.stream);
    ctx.statistics->backward.start(ctx.stream);
  }
  TensorView d = ctx.workspace.take(dnormed.shape(), options_.compute_dtype);
  fill_zero(ctx.stream, d);
  {
    Timed timed(ctx.profiler, Phase::norms);
    final_norm_->backward(ctx, dnormed, pass.final_norm, d);
  }
  backward_blocks(ctx, pass, d);
  embedding_->backward(ctx, d);
  finish_stage(ctx, 0);
  if (ctx.statistics) ctx.statistics->backward.stop(ctx.stream);
  collect_traffic(ctx);
  ctx.workspace.reset();
}

void Transformer::forward_loss(StepContext& ctx) const {
  ctx.dist.set_phase("forward without gradients");
  TensorView normed =
      ctx.workspace.take({ctx.local_tokens(), config_.hidden}, options_.compute_dtype);
  forward_blocks_without_saving(ctx, normed);
  head_->loss(ctx, normed, {});
  collect_traffic(ctx);
  ctx.workspace.reset();
}

void Transformer::forward_observed(StepContext& ctx) const {
  ctx.dist.set_phase("forward for an observer");
  TensorView normed =
      ctx.workspace.take({ctx.local_tokens(), config_.hidden}, options_.compute_dtype);
  forward_blocks_without_saving(ctx, normed);
  collect_traffic(ctx);
  ctx.workspace.reset();
}

void Transformer::forward_logits(StepContext& ctx, TensorView logits) const {
  TensorView normed =
      ctx.workspace.take({ctx.local_tokens(), config_.hidden}, options_.compute_dtype);
  forward_blocks_without_saving(ctx, normed);
  head_->logits(ctx, gather_tokens(ctx, normed), logits);
  ctx.workspace.reset();
}

KvCache Transformer::make_cache(int64_t batch, int64_t max_len) const {
  require(batch % dist_.tp().size() == 0, "a batch of {} sequences cannot be split over tp = {}",
          batch, dist_.tp().size());
  KvCache cache{.layers = {}, .length = 0, .max_len = max_len};
  for (const Block& block : blocks_) {
    cache.layers.push_back(block.attention().make_cache(batch, max_len, device_));
  }
  return cache;
}

void Transformer::forward_cached(StepContext& ctx, KvCache& cache, TensorView logits) const {
  const int64_t batch = ctx.batch.batch, seq_len = ctx.batch.seq_len;
  const ResidualStream streams[2] = {take_stream(ctx), take_stream(ctx)};
  ResidualStream stream{streams[1].residual, {}};
  embedding_->forward(ctx, cache.length, stream.residual);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].forward_cached(ctx, stream, streams[i % 2], cache.length, cache.layers[i]);
    stream = streams[i % 2];
  }
  cache.length += seq_len;

  TensorView normed = ctx.workspace.take(stream.residual.shape(), options_.compute_dtype);
  NormLayer::Saved saved;
  final_norm_->forward(ctx, stream.residual, stream.delta, stream.delta, normed, saved);
  std::vector<int32_t> last_rows;
  for (int64_t b = 1; b <= batch; ++b) last_rows.push_back(static_cast<int32_t>(b * seq_len - 1));
  TensorView last = ctx.workspace.take({batch, config_.hidden}, options_.compute_dtype);
  gather_rows(ctx.stream, gather_tokens(ctx, normed), ctx.on_device(view_of(std::span(last_rows))),
              last);
  head_->logits(ctx, last, logits);
  ctx.workspace.reset();
}

void Transformer::collect_traffic(StepContext& ctx) const {
  for (const Block& block : blocks_) {
    if (!block.moe()) continue;
    const ExchangeTraffic traffic = block.moe()->take_traffic();
    if (!ctx.statistics) continue;
    ctx.statistics->traffic.row_bytes += traffic.row_bytes;
    ctx.statistics->traffic.metadata_bytes += traffic.metadata_bytes;
  }
}

double Transformer::take_exchange_seconds() {
  double total = 0.0;
  for (Block& block : blocks_) {
    if (block.moe()) total += block.moe()->take_exchange_seconds();
  }
  return total;
}

void Transformer::update_balancing_biases(Stream& stream, const GlobalExpertCounts& counts) {
  size_t moe_layer = 0;
  for (Block& block : blocks_) {
    if (block.moe()) block.moe()->router().update_balancing_bias(stream, counts[moe_layer++]);
  }
}

std::vector<TensorView> Transformer::balancing_biases() {
  std::vector<TensorView> biases;
  for (Block& block : blocks_) {
    if (block.moe()) biases.push_back(block.moe()->router().balancing_bias());
  }
  return biases;
}

}  // namespace switchyard
