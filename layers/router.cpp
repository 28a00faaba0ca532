#include "layers/router.h"

#include <algorithm>
#include <cmath>

#include "kernels/basic/elementwise.h"
#include "kernels/moe/balance_loss.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

RouterOptions options_of(const RouterConfig& config) {
  return {.score = config.score,
          .top_k = config.top_k,
          .num_groups = config.num_groups,
          .groups_per_token = config.groups_per_token,
          .normalize_topk = config.normalize_topk,
          .routed_scaling_factor = static_cast<float>(config.routed_scaling_factor),
          .force_balanced = config.force_balanced};
}

}  // namespace

Router::Router(const BuildContext& build, const std::string& name, int moe_layer)
    : config_(build.config.router),
      options_(options_of(build.config.router)),
      num_experts_(build.config.num_experts),
      moe_layer_(moe_layer),
      linear_(build, name, build.config.num_experts, /*hidden_matrices=*/1) {
  if (config_.bias_update_rate > 0.0)
    bias_ = Tensor({num_experts_}, DType::f32, build.stream.device());
}

void Router::forward(StepContext& ctx, ConstTensorView x, Saved& saved) const {
  const ScopedPart part(ctx.stream, Part::moe_router);
  const int64_t tokens = x.dim(0);
  saved.x = x;
  saved.logits = ctx.saved.take({tokens, num_experts_}, DType::f32);
  saved.scores = ctx.saved.take({tokens, num_experts_}, DType::f32);
  saved.lse = ctx.saved.take({tokens}, DType::f32);
  saved.topk_idx = ctx.saved.take({tokens, config_.top_k}, DType::i32);
  saved.topk_weights = ctx.saved.take({tokens, config_.top_k}, DType::f32);
  linear_.forward(ctx, x, saved.logits);
  const ConstTensorView bias = bias_ ? bias_.view() : ConstTensorView();
  const bool balances = has_balance_loss() && !ctx.step;  // A step of decoding has no loss.
  const bool counts_experts = balances || ctx.statistics != nullptr;
  const Shape per_sequence{ctx.batch.num_sequences, num_experts_};
  if (balances) saved.dprobs = ctx.saved.take(per_sequence, DType::f32);
  {
    WorkspaceScope scope(ctx.scratch);
    TensorView counts, prob_sums;
    if (counts_experts) {
      counts = ctx.scratch.take(per_sequence, DType::f32);
      prob_sums = ctx.scratch.take(per_sequence, DType::f32);
    }
    router_forward(ctx.stream, ctx.scratch, options_, ctx.local_range(), saved.logits, bias,
                   saved.scores, saved.lse, saved.topk_idx, saved.topk_weights, counts, prob_sums);
    if (counts_experts) balance(ctx, counts, prob_sums, saved);
  }
  drop(ctx, saved);
  count_z_loss(ctx, saved);
}

void Router::drop(StepContext& ctx, Saved& saved) const {
  saved.dispatch_idx = saved.topk_idx;
  if (config_.capacity_factor <= 0.0 || ctx.dropless) return;
  const Shape all{ctx.tokens(), config_.top_k};
  TensorView dispatch_idx = ctx.saved.take(all, DType::i32);
  saved.dispatch_idx = dispatch_idx.rows(ctx.local_range().first_token, saved.topk_idx.dim(0));

  // Drops depend on whole sequences, which sequence parallelism may have split.
  WorkspaceScope scope(ctx.scratch);
  TensorView idx = ctx.scratch.take(all, DType::i32);
  TensorView weights = ctx.scratch.take(all, DType::f32);
  ctx.dist.tp().all_gather(ctx.stream, saved.topk_idx, idx);
  ctx.dist.tp().all_gather(ctx.stream, saved.topk_weights, weights);
  const double mean_load =
      static_cast<double>(ctx.batch.seq_len) * config_.top_k / static_cast<double>(num_experts_);
  const auto capacity = static_cast<int64_t>(std::ceil(config_.capacity_factor * mean_load));
  TensorView uncounted = ctx.scratch.take({1}, DType::f64);
  drop_over_capacity(ctx.stream, ctx.scratch, config_.drop_policy, capacity, ctx.batch.seq_len,
                     num_experts_, idx, weights, dispatch_idx,
                     ctx.counts_replicated() ? ctx.statistics->dropped() : uncounted);
}

void Router::balance(StepContext& ctx, TensorView counts, ConstTensorView prob_sums,
                     Saved& saved) const {
  if (ctx.statistics) {
    add_column_sums(ctx.stream, counts, ctx.statistics->expert_counts(moe_layer_));
  }
  if (!has_balance_loss()) return;

  double assignments = static_cast<double>(ctx.batch.seq_len) * config_.top_k;
  ConstTensorView load = counts;
  if (config_.balance_scope == BalanceScope::sequence) {
    ctx.dist.tp().all_reduce(ctx.stream, counts, ReduceOp::sum);
  } else {
    load = global_load(ctx, counts);
    assignments = static_cast<double>(ctx.global_tokens) * config_.top_k;
  }
  TensorView uncounted = ctx.scratch.take({1}, DType::f64);
  balance_loss(ctx.stream, load, assignments, prob_sums, ctx.scales.per_token,
               config_.aux_loss_coef, saved.dprobs,
               ctx.statistics ? ctx.statistics->aux_loss(moe_layer_) : uncounted);
}

// [1, experts]: assignments in the global batch.
ConstTensorView Router::global_load(StepContext& ctx, ConstTensorView counts) const {
  if (ctx.global_counts) {
    const auto& known = (*ctx.global_counts)[static_cast<size_t>(moe_layer_)];
    return ctx.on_device(std::vector<float>(known.begin(), known.end())).reshape({1, num_experts_});
  }
  TensorView load = ctx.scratch.take({1, num_experts_}, DType::f32);
  fill_zero(ctx.stream, load);
  for (int64_t s = 0; s < counts.dim(0); ++s) add(ctx.stream, counts.rows(s, 1), load);
  ctx.dist.world().all_reduce(ctx.stream, load, ReduceOp::sum);
  return load;
}

void Router::count_z_loss(StepContext& ctx, const Saved& saved) const {
  if (!ctx.statistics) return;
  add_sum_of_squares(ctx.stream, saved.lse, ctx.scales.per_token,
                     ctx.statistics->z_loss(moe_layer_));
}

void Router::backward(StepContext& ctx, ConstTensorView dtopk_weights, const Saved& saved,
                      TensorView dx) {
  const ScopedPart part(ctx.stream, Part::moe_router);
  WorkspaceScope scope(ctx.scratch);
  TensorView dlogits = ctx.scratch.take(saved.logits.shape(), DType::f32);
  const auto z_loss_scale = static_cast<float>(config_.z_loss_coef * ctx.scales.per_token);
  router_backward(ctx.stream, options_, ctx.local_range(), saved.logits, saved.scores, saved.lse,
                  saved.topk_idx, dtopk_weights, saved.dprobs, z_loss_scale, dlogits);
  linear_.backward(ctx, dlogits, saved.x, dx);
}

void Router::update_balancing_bias(Stream& stream, ConstTensorView global_counts) {
  if (bias_) move_balancing_bias(stream, global_counts, config_.bias_update_rate, bias_);
}

}  // namespace switchyard
