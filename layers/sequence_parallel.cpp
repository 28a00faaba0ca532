#include "layers/sequence_parallel.h"

namespace switchyard {
namespace {

Shape all_tokens_shape(const StepContext& ctx, ConstTensorView local) {
  return {ctx.tokens(), local.dim(1)};
}

}  // namespace

ConstTensorView gather_tokens(StepContext& ctx, ConstTensorView x_local) {
  if (ctx.dist.tp().size() == 1) return x_local;
  TensorView x = ctx.scratch.take(all_tokens_shape(ctx, x_local), x_local.dtype());
  ctx.dist.tp().all_gather(ctx.stream, x_local, x);
  return x;
}

TensorView partial_sums_for(StepContext& ctx, TensorView y_local) {
  if (ctx.dist.tp().size() == 1) return y_local;
  return ctx.scratch.take(all_tokens_shape(ctx, y_local), y_local.dtype());
}

void reduce_scatter_tokens(StepContext& ctx, ConstTensorView partial, TensorView y_local) {
  if (ctx.dist.tp().size() == 1) return;
  ctx.dist.tp().reduce_scatter(ctx.stream, partial, y_local);
}

}  // namespace switchyard
