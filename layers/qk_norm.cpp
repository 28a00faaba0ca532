#include "layers/qk_norm.h"

#include "kernels/basic/elementwise.h"
#include "kernels/norm/projection_norm.h"
#include "kernels/norm/rms_norm.h"

namespace switchyard {
namespace {

// The norm of heads takes every head's vector as a row.
template <class View>
View head_rows(View x) {
  return x.reshape({x.num_elements() / x.dim(-1), x.dim(-1)});
}

// The rows of a [2, tokens] tensor.
template <class View>
View of_q(View sums) {
  return sums.rows(0, 1).reshape({sums.dim(1)});
}
template <class View>
View of_k(View sums) {
  return sums.rows(1, 1).reshape({sums.dim(1)});
}

Parameter& weight_of(const BuildContext& build, const std::string& name, int64_t width) {
  return build.config.qk_norm == QkNormKind::head
             ? build.replicated_vector(name, build.config.head_dim, Init::ones())
             : build.sharded_vector(name, width, Init::ones());
}

}  // namespace

QkNorm::QkNorm(const BuildContext& build, const std::string& name)
    : kind_(build.config.qk_norm),
      eps_(static_cast<float>(build.config.norm_eps)),
      q_width_(build.config.num_heads * build.config.head_dim),
      k_width_(build.config.num_kv_heads * build.config.head_dim),
      q_weight_(&weight_of(build, name + ".q_norm.weight", q_width_)),
      k_weight_(&weight_of(build, name + ".k_norm.weight", k_width_)) {}

void QkNorm::forward(StepContext& ctx, Saved& saved, TensorView q, TensorView k) const {
  Stream& stream = ctx.stream;
  if (kind_ == QkNormKind::head) {
    saved.q_rstd = ctx.saved.take({q.num_elements() / q.dim(-1)}, DType::f32);
    saved.k_rstd = ctx.saved.take({k.num_elements() / k.dim(-1)}, DType::f32);
    rms_norm_forward(stream, head_rows(saved.q), {}, q_weight_->value, eps_, {}, head_rows(q),
                     saved.q_rstd);
    rms_norm_forward(stream, head_rows(saved.k), {}, k_weight_->value, eps_, {}, head_rows(k),
                     saved.k_rstd);
    return;
  }
  const TensorView squares = ctx.saved.take({2, ctx.tokens()}, DType::f32);
  saved.squares = squares;
  projection_sums(stream, saved.q, saved.q, {}, of_q(squares));
  projection_sums(stream, saved.k, saved.k, {}, of_k(squares));
  // Queries and keys share one collective.
  ctx.dist.tp().all_reduce(stream, squares, ReduceOp::sum);
  projection_norm_forward(stream, saved.q, of_q(squares), q_weight_->value, q_width_, eps_, q);
  projection_norm_forward(stream, saved.k, of_k(squares), k_weight_->value, k_width_, eps_, k);
}

void QkNorm::backward(StepContext& ctx, ConstTensorView dq, ConstTensorView dk, const Saved& saved,
                      TensorView dq_in, TensorView dk_in) {
  Stream& stream = ctx.stream;
  if (kind_ == QkNormKind::head) {
    fill_zero(stream, dq_in);
    fill_zero(stream, dk_in);
    rms_norm_backward(stream, ctx.scratch, head_rows(dq), head_rows(saved.q), q_weight_->value,
                      saved.q_rstd, head_rows(dq_in), q_weight_->grad);
    rms_norm_backward(stream, ctx.scratch, head_rows(dk), head_rows(saved.k), k_weight_->value,
                      saved.k_rstd, head_rows(dk_in), k_weight_->grad);
    return;
  }
  WorkspaceScope scope(ctx.scratch);
  const TensorView dots = ctx.scratch.take(saved.squares.shape(), DType::f32);
  projection_sums(stream, dq, saved.q, q_weight_->value, of_q(dots));
  projection_sums(stream, dk, saved.k, k_weight_->value, of_k(dots));
  ctx.dist.tp().all_reduce(stream, dots, ReduceOp::sum);
  projection_norm_backward(stream, ctx.scratch, dq, saved.q, of_q(saved.squares), of_q(dots),
                           q_weight_->value, q_width_, eps_, dq_in, q_weight_->grad);
  projection_norm_backward(stream, ctx.scratch, dk, saved.k, of_k(saved.squares), of_k(dots),
                           k_weight_->value, k_width_, eps_, dk_in, k_weight_->grad);
}

}  // namespace switchyard
