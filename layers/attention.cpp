#include "layers/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/basic/elementwise.h"
#include "kernels/decode/gather_attention.h"
#include "kernels/decode/received_attention.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/profile.h"
#include "layers/decoding/cached_step.h"
#include "layers/sequence_parallel.h"

namespace switchyard {
namespace {

Linear make_qkv(const BuildContext& build, const std::string& name) {
  const ModelConfig& c = build.config;
  const float std = build.init_std();
  const int64_t q_rows = c.num_heads * c.head_dim, kv_rows = c.num_kv_heads * c.head_dim;
  std::vector<Parameter*> weights = {
      &build.column_parallel(name + ".q.weight", q_rows, c.hidden, std),
      &build.column_parallel(name + ".k.weight", kv_rows, c.hidden, std),
      &build.column_parallel(name + ".v.weight", kv_rows, c.hidden, std)};
  std::vector<Parameter*> biases;
  if (c.bias != Biases::none) {
    biases = {&build.sharded_vector(name + ".q.bias", q_rows, Init::zeros()),
              &build.sharded_vector(name + ".k.bias", kv_rows, Init::zeros()),
              &build.sharded_vector(name + ".v.bias", kv_rows, Init::zeros())};
  }
  return Linear(build.store, std::move(weights), std::move(biases));
}

}  // namespace

Attention::Attention(const BuildContext& build, const std::string& name)
    : heads_(build.config.num_heads / build.dist.tp().size()),
      kv_heads_(build.config.num_kv_heads / build.dist.tp().size()),
      head_dim_(build.config.head_dim),
      scale_(1.0f / std::sqrt(static_cast<float>(build.config.head_dim))),
      dtype_(build.compute_dtype),
      qkv_(make_qkv(build, name)) {
  const ModelConfig& c = build.config;
  out_ = Linear(build.store,
                {&build.row_parallel(name + ".out.weight", c.hidden, c.num_heads * c.head_dim,
                                     build.residual_init_std())});
  if (c.bias == Biases::attention || c.bias == Biases::all) {
    out_bias_ = &build.replicated_vector(name + ".out.bias", c.hidden, Init::zeros());
  }
  if (c.qk_norm != QkNormKind::none) norm_.emplace(build, name);
  if (c.position == Position::rope) {
    rope_ = make_rope_table(build.stream, c.seq_len, c.rope());
  }
}

void Attention::project_qkv(StepContext& ctx, ConstTensorView x,
                            const FirstPosition& first_position, Saved& saved) const {
  const int64_t batch = ctx.batch.num_sequences, seq_len = ctx.batch.seq_len;
  saved.x = x;
  saved.q = ctx.saved.take({batch, heads_, seq_len, head_dim_}, dtype_);
  saved.k = ctx.saved.take({batch, kv_heads_, seq_len, head_dim_}, dtype_);
  saved.v = ctx.saved.take({batch, kv_heads_, seq_len, head_dim_}, dtype_);
  if (norm_) {
    saved.norm.q = ctx.saved.take(saved.q.shape(), dtype_);
    saved.norm.k = ctx.saved.take(saved.k.shape(), dtype_);
  }

  WorkspaceScope scope(ctx.scratch);
  ConstTensorView all = gather_tokens(ctx, x);
  TensorView qkv = ctx.scratch.take({all.dim(0), qkv_.out_features()}, dtype_);
  qkv_.forward(ctx, all, qkv);
  if (!norm_) {
    split_qkv_forward(ctx.stream, qkv, rope_.cos, rope_.sin, first_position, saved.q, saved.k,
                      saved.v);
    return;
  }
  split_qkv_forward(ctx.stream, qkv, {}, {}, first_position, saved.norm.q, saved.norm.k, saved.v);
  norm_->forward(ctx, saved.norm, saved.q, saved.k);
  if (rope_.cos) {
    rope_in_place(ctx.stream, rope_.cos, rope_.sin, first_position, /*inverse=*/false, saved.q);
    rope_in_place(ctx.stream, rope_.cos, rope_.sin, first_position, /*inverse=*/false, saved.k);
  }
}

void Attention::project_out(StepContext& ctx, ConstTensorView out, TensorView y) const {
  WorkspaceScope scope(ctx.scratch);
  TensorView partial = partial_sums_for(ctx, y);
  out_.forward(ctx, out, partial);
  reduce_scatter_tokens(ctx, partial, y);
  // The bias is added after the sum: once per token, not once per tp rank.
  if (out_bias_) add_bias(ctx.stream, out_bias_->value, y);
}

void Attention::forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) const {
  const ScopedPart part(ctx.stream, Part::attention);
  project_qkv(ctx, x, /*first_position=*/0, saved);
  saved.out = ctx.saved.take({ctx.tokens(), heads_ * head_dim_}, dtype_);
  saved.lse = ctx.saved.take({ctx.batch.num_sequences, heads_, ctx.batch.seq_len}, DType::f32);
  attention_forward(ctx.stream, ctx.scratch, saved.q, saved.k, saved.v, ctx.batch.document_start,
                    scale_, saved.out, saved.lse);
  project_out(ctx, saved.out, y);
}

void Attention::backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx) {
  const ScopedPart part(ctx.stream, Part::attention);
  WorkspaceScope scope(ctx.scratch);
  if (out_bias_) add_bias_backward(ctx.stream, ctx.scratch, dy, out_bias_->grad);
  ConstTensorView dy_all = gather_tokens(ctx, dy);
  TensorView dout = ctx.scratch.take(saved.out.shape(), dtype_);
  out_.backward(ctx, dy_all, saved.out, dout);

  TensorView dq = ctx.scratch.take(saved.q.shape(), dtype_);
  TensorView dk = ctx.scratch.take(saved.k.shape(), dtype_);
  TensorView dv = ctx.scratch.take(saved.v.shape(), dtype_);
  attention_backward(ctx.stream, ctx.scratch, dout, saved.q, saved.k, saved.v, saved.out, saved.lse,
                     ctx.batch.document_start, scale_, dq, dk, dv);
  backward_qkv(ctx, saved, dq, dk, dv, dx);
}

void Attention::backward_qkv(StepContext& ctx, const Saved& saved, TensorView dq, TensorView dk,
                             ConstTensorView dv, TensorView dx) {
  TensorView dqkv = ctx.scratch.take({ctx.tokens(), qkv_.out_features()}, dtype_);
  if (!norm_) {
    split_qkv_backward(ctx.stream, dq, dk, dv, rope_.cos, rope_.sin, dqkv);
  } else {
    if (rope_.cos) {
      rope_in_place(ctx.stream, rope_.cos, rope_.sin, 0, /*inverse=*/true, dq);
      rope_in_place(ctx.stream, rope_.cos, rope_.sin, 0, /*inverse=*/true, dk);
    }
    TensorView dq_split = ctx.scratch.take(dq.shape(), dtype_);
    TensorView dk_split = ctx.scratch.take(dk.shape(), dtype_);
    norm_->backward(ctx, dq, dk, saved.norm, dq_split, dk_split);
    split_qkv_backward(ctx.stream, dq_split, dk_split, dv, {}, {}, dqkv);
  }
  ConstTensorView x = gather_tokens(ctx, saved.x);
  TensorView partial = partial_sums_for(ctx, dx);
  qkv_.backward(ctx, dqkv, x, partial);
  reduce_scatter_tokens(ctx, partial, dx);
}

KvCacheLayer Attention::make_cache(int64_t batch, int64_t max_len, Device device) const {
  const Shape shape = cache_shape(batch, max_len);
  return {.k = Tensor(shape, dtype_, device), .v = Tensor(shape, dtype_, device), .selector = {}};
}

// Attends with one token per sequence, whose key and value are in the cache.
void Attention::decode(StepContext& ctx, const Saved& saved, int layer, KvCacheLayer& cache,
                       TensorView out) const {
  const int64_t batch = ctx.batch.num_sequences;
  const CachedStep& step = *ctx.step;
  const int64_t length = step.position + 1;
  const ConstTensorView q = saved.q.reshape({batch, heads_, head_dim_});
  SelectedKeys selected;
  if (cache.selector) {
    selected = cache.selector->select(ctx.stream, ctx.scratch, q, saved.k,
                                      {.k = cache.k,
                                       .v = cache.v,
                                       .lengths = step.lengths,
                                       .length = length,
                                       .newest = step.positions,
                                       .prompt = cache.prompt_attention},
                                      step.budget_of(layer, cache));
  }
  ConstTensorView k = cache.k, v = cache.v;
  if (cache.offloaded) {
    OffloadedLayer& offloaded = *cache.offloaded;
    if (selected) {
      selected.indices = offloaded.bring(ctx.stream, ctx.scratch, selected.indices, length);
    } else {
      offloaded.bring_all(ctx.stream, length);
    }
    k = offloaded.near().k;
    v = offloaded.near().v;
  }
  if (selected) {
    gather_attention(ctx.stream, ctx.scratch, q, k, v, selected.indices, selected.counts,
                     selected.log_weights, scale_, out);
  } else {
    decode_attention(ctx.stream, ctx.scratch, q, k, v, step.lengths, scale_, out);
  }
}

void Attention::fetch_ahead(StepContext& ctx, ConstTensorView x, KvCacheLayer& cache) const {
  const ScopedPart part(ctx.stream, Part::attention);
  const int64_t position = ctx.step->position;
  if (!cache.selector) return cache.offloaded->begin(ctx.stream, {}, position);
  WorkspaceScope saved_scope(ctx.saved), scope(ctx.scratch);
  const int64_t batch = ctx.batch.num_sequences;
  Saved saved;
  project_qkv(ctx, x, position, saved);
  const ConstTensorView lengths = ctx.on_device(
      std::vector<int32_t>(static_cast<size_t>(batch), static_cast<int32_t>(position)));
  const SelectedKeys predicted =
      cache.selector->predict(ctx.stream, ctx.scratch, saved.q.reshape({batch, heads_, head_dim_}),
                              {.k = {}, .v = {}, .lengths = lengths, .length = position},
                              budget_tokens(cache.budget, position));
  cache.offloaded->begin(ctx.stream, predicted.indices, position);
}

void Attention::forward_cached(StepContext& ctx, ConstTensorView x, int layer, KvCacheLayer& cache,
                               TensorView y) const {
  const int64_t batch = ctx.batch.num_sequences, seq_len = ctx.batch.seq_len;
  const FirstPosition first_position = ctx.step ? ctx.step->first_position() : 0;
  const ScopedPart part(ctx.stream, Part::attention);
  WorkspaceScope saved_scope(ctx.saved), scope(ctx.scratch);
  Saved saved;
  project_qkv(ctx, x, first_position, saved);
  if (cache.offloaded) {
    cache.offloaded->write(ctx.stream, saved.k, saved.v, first_position.on_host);
  } else {
    append_to_cache(ctx.stream, saved.k, first_position, cache.k);
    append_to_cache(ctx.stream, saved.v, first_position, cache.v);
  }

  TensorView out = ctx.scratch.take({ctx.tokens(), heads_ * head_dim_}, dtype_);
  if (!ctx.step) {
    TensorView lse = ctx.scratch.take({batch, heads_, seq_len}, DType::f32);
    attention_forward(ctx.stream, ctx.scratch, saved.q, saved.k, saved.v, ctx.batch.document_start,
                      scale_, out, lse);
    for (PromptAttention& kept : cache.prompt_attention) {
      fill_zero(ctx.stream, kept.received);
      received_attention(ctx.stream, ctx.scratch, saved.q, saved.k, lse,
                         std::max<int64_t>(seq_len - kept.queries, 0), scale_, kept.received);
    }
    if (cache.selector) cache.selector->append(ctx.stream, ctx.scratch, saved.k, 0);
  } else {
    decode(ctx, saved, layer, cache, out);
  }
  project_out(ctx, out, y);
}

}  // namespace switchyard
