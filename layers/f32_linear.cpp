#include "layers/f32_linear.h"

#include "kernels/basic/elementwise.h"
#include "kernels/linear/matmul.h"
#include "kernels/linear/split_bf16.h"

namespace switchyard {
namespace {

// x itself, or an f32 copy of it from scratch memory.
ConstTensorView in_f32(StepContext& ctx, ConstTensorView x) {
  if (x.dtype() == DType::f32) return x;
  TensorView copy = ctx.scratch.take(x.shape(), DType::f32);
  cast(ctx.stream, x, copy);
  return copy;
}

// On CUDA, products of bf16 x run as bf16 products of split f32 operands (kernels/linear/
// split_bf16.h). cuBLAS needs rows of multiples of 16 bytes for them to be fast.
bool splits(const StepContext& ctx, ConstTensorView x, int64_t out) {
  return ctx.stream.device().kind == DeviceKind::cuda && x.dtype() == DType::bf16 && out % 8 == 0;
}

TensorView above_each_other(StepContext& ctx, ConstTensorView values,
                            const std::array<Term, 3>& terms) {
  const TensorView parts = ctx.scratch.take({3 * values.dim(0), values.dim(1)}, DType::bf16);
  split_bf16(ctx.stream, values, terms, parts);
  return parts;
}

TensorView side_by_side(StepContext& ctx, ConstTensorView values,
                        const std::array<Term, 3>& terms) {
  const TensorView parts = ctx.scratch.take({values.dim(0), 3 * values.dim(1)}, DType::bf16);
  split_bf16(ctx.stream, values, terms, parts);
  return parts;
}

}  // namespace

F32Linear::F32Linear(const BuildContext& build, const std::string& name, int64_t out,
                     int hidden_matrices)
    : weight_(&build.router_weight(name + ".weight", {out, build.config.hidden}, build.init_std(),
                                   hidden_matrices)) {
  weight_->gradient_is_product = true;
}

void F32Linear::forward(StepContext& ctx, ConstTensorView x, TensorView y) const {
  WorkspaceScope scope(ctx.scratch);
  if (!splits(ctx, x, y.dim(1))) {
    matmul(ctx.stream, in_f32(ctx, x), Transpose::no, weight_->value, Transpose::yes,
           Accumulate::no, y);
    return;
  }
  const TensorView parts = ctx.scratch.take({y.dim(0), 3 * y.dim(1)}, DType::f32);
  matmul(ctx.stream, x, Transpose::no, above_each_other(ctx, weight_->value, kAllTerms),
         Transpose::yes, Accumulate::no, parts);
  join_terms(ctx.stream, parts, Accumulate::no, y);
}

void F32Linear::backward(StepContext& ctx, ConstTensorView dy, ConstTensorView x, TensorView dx) {
  WorkspaceScope scope(ctx.scratch);
  if (splits(ctx, x, dy.dim(1))) return backward_split(ctx, dy, x, dx);
  matmul(ctx.stream, dy, Transpose::yes, in_f32(ctx, x), Transpose::no, weight_->begin_gradient(),
         weight_->grad);
  if (dx.dtype() == DType::f32) {
    matmul(ctx.stream, dy, Transpose::no, weight_->value, Transpose::no, Accumulate::yes, dx);
    return;
  }
  TensorView dx_f32 = ctx.scratch.take(dx.shape(), DType::f32);
  matmul(ctx.stream, dy, Transpose::no, weight_->value, Transpose::no, Accumulate::no, dx_f32);
  add(ctx.stream, dx_f32, dx);
}

void F32Linear::backward_split(StepContext& ctx, ConstTensorView dy, ConstTensorView x,
                               TensorView dx) {
  const Shape& shape = weight_->value.shape();
  const TensorView parts = ctx.scratch.take({3 * shape[0], shape[1]}, DType::f32);
  matmul(ctx.stream, side_by_side(ctx, dy, kAllTerms), Transpose::yes, x, Transpose::no,
         Accumulate::no, parts);
  join_terms(ctx.stream, parts, weight_->begin_gradient(), weight_->grad);
  // hi hi + hi mid + mid hi: what is left out is less than 2^-16 of the product, and dx is bf16.
  matmul(ctx.stream, side_by_side(ctx, dy, {Term::hi, Term::hi, Term::mid}), Transpose::no,
         above_each_other(ctx, weight_->value, {Term::hi, Term::mid, Term::hi}), Transpose::no,
         Accumulate::yes, dx);
}

}  // namespace switchyard
