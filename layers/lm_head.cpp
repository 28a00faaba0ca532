#include "layers/lm_head.h"

#include <algorithm>

#include "kernels/basic/elementwise.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/integers.h"
#include "kernels/runtime/profile.h"
#include "kernels/vocabulary/cross_entropy.h"
#include "layers/sequence_parallel.h"

namespace switchyard {

int64_t LmHead::chunk_tokens(DeviceKind device, int64_t vocab_size, int tp) {
  // On the CPU a chunk is small enough that its logits stay in the cache between the passes over
  // them.
  constexpr int64_t kOnCpu = 256;
  if (device == DeviceKind::cpu) return kOnCpu;
  // A GPU reads and writes the whole f32 gradient of its vocabulary once per chunk, and needs more
  // than a few tiles of rows in every product to be fast. A chunk therefore has as many rows as a
  // bounded memory holds, in whole tiles.
  constexpr int64_t kLogitsBytes = int64_t{256} << 20, kTile = 128;
  const int64_t columns = round_up(ceil_div(vocab_size, tp), BuildContext::kHeadRows);
  const int64_t row_bytes = columns * static_cast<int64_t>(size_of(DType::f32));
  return std::max(kOnCpu, kLogitsBytes / row_bytes / kTile * kTile);
}

LmHead::LmHead(const BuildContext& build, Parameter& embedding)
    : vocab_size_(build.config.vocab_size),
      chunk_tokens_(chunk_tokens(build.stream.device().kind, vocab_size_, build.dist.tp().size())),
      first_id_(build.first_vocab_id()),
      weight_(build.config.tie_embeddings
                  ? &embedding
                  : &build.vocab_parallel("head.weight", build.init_std(), true)) {
  // A tied embedding's gradient begins here, too: the embedding adds its own in the backward pass.
  weight_->gradient_is_product = true;
}

void LmHead::loss(StepContext& ctx, ConstTensorView x, TensorView dx) {
  const ScopedPart part(ctx.stream, Part::head_and_loss);
  WorkspaceScope scope(ctx.scratch);
  const ConstTensorView all = gather_tokens(ctx, x);
  const ConstTensorView targets = ctx.batch.targets.view().reshape({ctx.tokens()});
  const TensorView dall = dx ? partial_sums_for(ctx, dx) : TensorView();

  for (int64_t begin = 0; begin < ctx.tokens(); begin += chunk_tokens_) {
    const int64_t rows = std::min(chunk_tokens_, ctx.tokens() - begin);
    chunk_loss(ctx, all.rows(begin, rows), targets.rows(begin, rows),
               dx ? dall.rows(begin, rows) : TensorView());
  }
  if (dx) reduce_scatter_tokens(ctx, dall, dx);
}

// Adds the losses of one chunk to the statistics; its gradients are scaled as the loss is.
void LmHead::chunk_loss(StepContext& ctx, ConstTensorView x, ConstTensorView targets,
                        TensorView dx) {
  WorkspaceScope scope(ctx.scratch);
  Communicator& tp = ctx.dist.tp();
  const int64_t rows = x.dim(0);
  const int64_t ids = weight_->value.dim(0), columns = weight_->padded_value.dim(0);
  TensorView logits = ctx.scratch.take({rows, columns}, DType::f32);
  TensorView row_max = ctx.scratch.take({rows}, DType::f32);
  TensorView sums = ctx.scratch.take({2, rows}, DType::f32);  // reduced in one call
  TensorView sum_exp = sums.rows(0, 1).reshape({rows});
  TensorView target_logit = sums.rows(1, 1).reshape({rows});
  TensorView losses = ctx.scratch.take({rows}, DType::f32);

  matmul(ctx.stream, x, Transpose::no, weight_->padded_value, Transpose::yes, Accumulate::no,
         logits);
  if (columns > ids) mask_columns(ctx.stream, ids, logits);
  const IdRange range(first_id_, ids);
  cross_entropy_forward(ctx.stream, logits, targets, range, row_max, sum_exp, target_logit);
  if (tp.size() > 1) {
    TensorView local_max = ctx.scratch.take({rows}, DType::f32);
    copy(ctx.stream, row_max, local_max);
    tp.all_reduce(ctx.stream, row_max, ReduceOp::max);
    cross_entropy_rescale(ctx.stream, local_max, row_max, sum_exp);
    tp.all_reduce(ctx.stream, sums, ReduceOp::sum);
  }
  cross_entropy_losses(ctx.stream, targets, row_max, sum_exp, target_logit, losses);
  if (ctx.counts_replicated()) {
    add_sum(ctx.stream, losses, ctx.scales.per_target, ctx.statistics->loss());
  }
  if (!dx) return;

  TensorView dlogits =
      x.dtype() == DType::f32 ? logits : ctx.scratch.take(logits.shape(), x.dtype());
  cross_entropy_backward(ctx.stream, logits, targets, range, row_max, sum_exp,
                         ctx.scales.per_target, dlogits);
  matmul(ctx.stream, dlogits, Transpose::yes, x, Transpose::no, weight_->begin_gradient(),
         weight_->padded_grad);
  matmul(ctx.stream, dlogits, Transpose::no, weight_->padded_value, Transpose::no, Accumulate::no,
         dx);
}

void LmHead::logits(StepContext& ctx, ConstTensorView x, TensorView logits) const {
  WorkspaceScope scope(ctx.scratch);
  const int64_t rows = x.dim(0), local = weight_->value.dim(0);
  if (local == vocab_size_) {
    matmul(ctx.stream, x, Transpose::no, weight_->value, Transpose::yes, Accumulate::no, logits);
    return;
  }
  TensorView part = ctx.scratch.take({rows, local}, DType::f32);
  matmul(ctx.stream, x, Transpose::no, weight_->value, Transpose::yes, Accumulate::no, part);
  // Vocabulary shards may differ by a few ids, so their parts are joined by a sum with zeros.
  fill_zero(ctx.stream, logits);
  for (int64_t row = 0; row < rows; ++row) {
    copy(ctx.stream, part.rows(row, 1).reshape({local}),
         logits.rows(row, 1).reshape({vocab_size_}).rows(first_id_, local));
  }
  ctx.dist.tp().all_reduce(ctx.stream, logits, ReduceOp::sum);
}

}  // namespace switchyard
