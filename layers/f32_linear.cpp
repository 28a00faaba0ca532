#include "layers/f32_linear.h"

#include "kernels/basic/elementwise.h"
#include "kernels/linear/matmul.h"

namespace switchyard {
namespace {

// x itself, or an f32 copy of it from scratch memory.
ConstTensorView in_f32(StepContext& ctx, ConstTensorView x) {
  if (x.dtype() == DType::f32) return x;
  TensorView copy = ctx.scratch.take(x.shape(), DType::f32);
  cast(ctx.stream, x, copy);
  return copy;
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
  matmul(ctx.stream, in_f32(ctx, x), Transpose::no, weight_->value, Transpose::yes, Accumulate::no,
         y);
}

void F32Linear::backward(StepContext& ctx, ConstTensorView dy, ConstTensorView x, TensorView dx) {
  WorkspaceScope scope(ctx.scratch);
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

}  // namespace switchyard
