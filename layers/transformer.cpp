#include "layers/transformer.h"

#include <algorithm>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "layers/decoding/cached_step.h"
#include "layers/sequence_parallel.h"

namespace switchyard {
namespace {

ParameterStore::BucketElements bucket_elements(const DistributedContext& dist,
                                               const TransformerOptions& options) {
  const auto of = [&](const Communicator& group) {
    return options.bucket_elements.value_or(ParameterStore::bucket_elements_of(group.size()));
  };
  return {.sharded = of(dist.dp()), .replicated = of(dist.world()), .expert = of(dist.edp())};
}

}  // namespace

Transformer::Transformer(Stream& stream, const ModelConfig& config, const DistributedContext& dist,
                         const TransformerOptions& options)
    : config_(config),
      tp_(dist.tp().size()),
      options_(options),
      device_(stream.device()),
      store_(std::make_unique<ParameterStore>(bucket_elements(dist, options))) {
  const BuildContext build{stream, *store_, config_, dist, options_.compute_dtype};
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
  store_->materialize(stream, options_.seed, dist.world().size());
}

TensorView Transformer::take_stream(StepContext& ctx, Workspace& workspace) const {
  return workspace.take({ctx.local_tokens(), config_.hidden}, options_.compute_dtype);
}

// Stages are those of finish_stage.
void Transformer::await_stage(StepContext& ctx, size_t stage) const {
  store_->await_values(ctx.stream, static_cast<int>(stage));
}

ResidualStream Transformer::embed(StepContext& ctx, TensorView to) const {
  await_stage(ctx, 0);
  embedding_->forward(ctx, to);
  return {.sum = to, .update = {}};
}

// ---- Forward -----------------------------------------------------------------------------------

ResidualStream Transformer::forward_block(StepContext& ctx, size_t block, const ResidualStream& x,
                                          Pass& pass) {
  await_stage(ctx, block + 1);
  const Block::Updates updates{.attention = take_stream(ctx, ctx.saved),
                               .feed_forward = take_stream(ctx, ctx.saved)};
  return blocks_[block].forward(ctx, x, updates, pass.blocks[block]);
}

// Keeps only the block's input, which lies in the memory of the previous feed-forward's update, and
// the plan of its exchange; `attention` is needed only until the end of the next block.
ResidualStream Transformer::forward_block_for_recomputation(StepContext& ctx, size_t block,
                                                            const ResidualStream& x,
                                                            TensorView attention, Pass& pass) {
  await_stage(ctx, block + 1);
  const Block::Updates updates{.attention = attention, .feed_forward = take_stream(ctx, ctx.saved)};
  WorkspaceScope scope(ctx.saved);
  Block::Saved saved;
  saved.moe.plan_memory = pass.plan_memory;
  const ResidualStream y = blocks_[block].forward(ctx, x, updates, saved);
  pass.inputs[block] = saved.norm1.x;
  if (pass.plan_memory) pass.plans[block] = saved.moe.plan;
  return y;
}

void Transformer::forward(StepContext& ctx, Pass& pass) {
  WorkspaceScope scope(ctx.scratch);
  ResidualStream stream = embed(ctx, take_stream(ctx, ctx.saved));
  if (options_.recompute) {
    pass.inputs.resize(blocks_.size());
    pass.plans.assign(blocks_.size(), nullptr);
    const TensorView attention[2] = {take_stream(ctx, ctx.scratch), take_stream(ctx, ctx.scratch)};
    for (size_t i = 0; i < blocks_.size(); ++i) {
      stream = forward_block_for_recomputation(ctx, i, stream, attention[i % 2], pass);
    }
  } else {
    pass.blocks.clear();  // A plan that is left from other tokens would be used again.
    pass.blocks.resize(blocks_.size());
    for (size_t i = 0; i < blocks_.size(); ++i) stream = forward_block(ctx, i, stream, pass);
  }
  await_stage(ctx, blocks_.size() + 1);
  pass.normed = take_stream(ctx, ctx.saved);
  final_norm_->forward(ctx, stream, pass.normed, pass.final_norm);
  pass.dnormed = take_stream(ctx, ctx.saved);
  head_->loss(ctx, pass.normed, pass.dnormed);
}

// Each block's tensors are released before the next block runs.
//   normed  [local_tokens, hidden]: the head's input
void Transformer::forward_without_saving(StepContext& ctx, TensorView normed) {
  WorkspaceScope scope(ctx.scratch);
  const auto take = [&] { return take_stream(ctx, ctx.scratch); };
  const Block::Updates updates[2] = {{take(), take()}, {take(), take()}};
  ResidualStream stream = embed(ctx, updates[1].attention);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    WorkspaceScope saved_scope(ctx.saved);
    Block::Saved saved;
    await_stage(ctx, i + 1);
    stream = blocks_[i].forward(ctx, stream, updates[i % 2], saved);
  }
  WorkspaceScope saved_scope(ctx.saved);
  NormLayer::Saved saved;
  await_stage(ctx, blocks_.size() + 1);
  final_norm_->forward(ctx, stream, normed, saved);
}

void Transformer::forward_loss(StepContext& ctx) {
  WorkspaceScope scope(ctx.scratch);
  TensorView normed = take_stream(ctx, ctx.scratch);
  forward_without_saving(ctx, normed);
  head_->loss(ctx, normed, {});
}

void Transformer::forward_blocks(StepContext& ctx) {
  WorkspaceScope scope(ctx.scratch);
  forward_without_saving(ctx, take_stream(ctx, ctx.scratch));
}

void Transformer::forward_logits(StepContext& ctx, TensorView logits) {
  WorkspaceScope scope(ctx.scratch);
  TensorView normed = take_stream(ctx, ctx.scratch);
  forward_without_saving(ctx, normed);
  head_->logits(ctx, gather_tokens(ctx, normed), logits);
}

// ---- Backward ----------------------------------------------------------------------------------

// Stage 0 is the embedding, stage i + 1 block i, the last one the final norm and the head.
void Transformer::finish_stage(StepContext& ctx, size_t stage) const {
  if (ctx.gradients_are_final) ctx.gradients_are_final(static_cast<int>(stage));
}

void Transformer::backward_block(StepContext& ctx, size_t block, const Pass& pass, TensorView d) {
  if (!options_.recompute) return blocks_[block].backward(ctx, pass.blocks[block], d);
  WorkspaceScope saved_scope(ctx.saved), scope(ctx.scratch);
  StepContext again = ctx;
  again.statistics = nullptr;  // counted in the forward pass
  again.observer = nullptr;    // observed there, too
  Block::Saved saved;
  saved.moe.plan = pass.plans[block];
  const Block::Updates updates{.attention = take_stream(ctx, ctx.saved),
                               .feed_forward = take_stream(ctx, ctx.saved)};
  blocks_[block].forward(again, {.sum = pass.inputs[block], .update = {}}, updates, saved);
  blocks_[block].backward(ctx, saved, d);
}

void Transformer::backward(StepContext& ctx, const Pass& pass) {
  WorkspaceScope scope(ctx.scratch);
  TensorView d = take_stream(ctx, ctx.scratch);
  fill_zero(ctx.stream, d);
  final_norm_->backward(ctx, pass.dnormed, pass.final_norm, d);
  finish_stage(ctx, blocks_.size() + 1);
  for (size_t i = blocks_.size(); i-- > 0;) {
    backward_block(ctx, i, pass, d);
    finish_stage(ctx, i + 1);
  }
  embedding_->backward(ctx, d);
  finish_stage(ctx, 0);
}

// ---- Decoding ----------------------------------------------------------------------------------

KvCache Transformer::make_cache(int64_t batch, int64_t max_len, const DecodeSetup* setup) const {
  require(batch % tp_ == 0, "a batch of {} sequences cannot be split over tp = {}", batch, tp_);
  KvCache cache{.layers = {}, .length = 0, .max_len = max_len};
  OffloadedLayers offloaded(setup, options_.compute_dtype, device_);
  for (const Block& block : blocks_) {
    if (setup && setup->is_offloaded(static_cast<int>(cache.layers.size()))) {
      cache.layers.push_back(
          {.k = {},
           .v = {},
           .offloaded = offloaded.add(block.attention().cache_shape(batch, max_len)),
           .selector = {}});
    } else {
      cache.layers.push_back(block.attention().make_cache(batch, max_len, device_));
    }
  }
  return cache;
}

void Transformer::forward_cached(StepContext& ctx, KvCache& cache, TensorView logits) {
  require(cache.length == 0 || ctx.batch.seq_len == 1,
          "after the prefill, a call takes one token per sequence");
  if (cache.length == 0) {
    forward_into_cache(ctx, cache, logits);
  } else {
    WorkspaceScope scope(ctx.scratch);
    const int64_t batch = ctx.batch.num_sequences;
    std::vector<int32_t> values(static_cast<size_t>(num_step_values(cache, batch)));
    write_step_values(cache, batch, values);
    const CachedStep step =
        step_of(cache, batch, ctx.on_device(std::move(values)), /*longest=*/cache.length + 1);
    StepContext of_step = ctx;
    of_step.step = &step;
    forward_step(of_step, cache, logits);
  }
  cache.length += ctx.batch.seq_len;
}

void Transformer::forward_step(StepContext& ctx, KvCache& cache, TensorView logits) {
  require(ctx.step && ctx.batch.seq_len == 1 && ctx.step->position < cache.max_len,
          "a step reads one token per sequence, at a position below {}", cache.max_len);
  forward_into_cache(ctx, cache, logits);
}

void Transformer::forward_into_cache(StepContext& ctx, KvCache& cache, TensorView logits) {
  WorkspaceScope saved_scope(ctx.saved), scope(ctx.scratch);
  const auto take = [&] { return take_stream(ctx, ctx.scratch); };
  const Block::Updates updates[2] = {{take(), take()}, {take(), take()}};
  ResidualStream stream = embed(ctx, updates[1].attention);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    await_stage(ctx, i + 1);
    const bool is_last = i + 1 == blocks_.size();
    stream = blocks_[i].forward_cached(ctx, stream, updates[i % 2], cache.layers[i],
                                       is_last ? nullptr : &blocks_[i + 1],
                                       is_last ? nullptr : &cache.layers[i + 1]);
  }

  TensorView normed = take();
  NormLayer::Saved saved;
  await_stage(ctx, blocks_.size() + 1);
  final_norm_->forward(ctx, stream, normed, saved);
  head_->logits(ctx, last_tokens(ctx, gather_tokens(ctx, normed)), logits);
}

// The rows of each sequence's last token.
ConstTensorView Transformer::last_tokens(StepContext& ctx, ConstTensorView rows) const {
  const int64_t sequences = ctx.batch.num_sequences, seq_len = ctx.batch.seq_len;
  if (seq_len == 1) return rows;
  std::vector<int32_t> last_rows;
  for (int64_t s = 1; s <= sequences; ++s) {
    last_rows.push_back(static_cast<int32_t>(s * seq_len - 1));
  }
  TensorView last = ctx.scratch.take({sequences, config_.hidden}, options_.compute_dtype);
  gather_rows(ctx.stream, rows, ctx.on_device(std::move(last_rows)), last);
  return last;
}

// ---- The MoE layers' figures and state ---------------------------------------------------------

MoeLayer* Transformer::first_moe_layer() {
  for (Block& block : blocks_) {
    if (block.moe()) return block.moe();
  }
  return nullptr;
}

void Transformer::set_exchange_chunks(int chunks) {
  for (Block& block : blocks_) {
    if (block.moe()) block.moe()->exchange().set_chunks(chunks);
  }
}

ExchangeFigures Transformer::take_exchange_figures() {
  ExchangeFigures total;
  for (Block& block : blocks_) {
    if (!block.moe()) continue;
    const ExchangeFigures figures = block.moe()->exchange().take_figures();
    total.row_bytes += figures.row_bytes;
    total.row_bytes_between_hosts += figures.row_bytes_between_hosts;
    total.metadata_bytes += figures.metadata_bytes;
    total.seconds += figures.seconds;
    total.buffer_bytes = std::max(total.buffer_bytes, figures.buffer_bytes);
  }
  return total;
}

void Transformer::update_balancing_biases(Stream& stream, ConstTensorView counts) {
  int64_t moe_layer = 0;
  for (Block& block : blocks_) {
    if (!block.moe()) continue;
    const ConstTensorView of_layer = counts.rows(moe_layer++, 1).reshape({counts.dim(1)});
    block.moe()->router().update_balancing_bias(stream, of_layer);
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
