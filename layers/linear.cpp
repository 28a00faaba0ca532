#include "layers/linear.h"

#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/linear/matmul_with_bias.h"
#include "kernels/runtime/check.h"

namespace switchyard {

Linear::Linear(ParameterStore& store, std::vector<Parameter*> weights,
               std::vector<Parameter*> biases)
    : store_(&store), weights_(std::move(weights)), biases_(std::move(biases)) {
  require(!weights_.empty(), "a linear map needs a weight");
  for (Parameter* weight : weights_) weight->gradient_is_product = true;
}

ConstTensorView Linear::weight() const {
  return store_->fused_value(*weights_.front(), *weights_.back());
}

TensorView Linear::weight_grad() { return store_->fused_grad(*weights_.front(), *weights_.back()); }

int64_t Linear::out_features() const { return weight().dim(0); }

void Linear::forward(StepContext& ctx, ConstTensorView x, TensorView y,
                     Accumulate accumulate) const {
  if (biases_.empty()) {
    matmul(ctx.stream, x, Transpose::no, weight(), Transpose::yes, accumulate, y);
    return;
  }
  const ConstTensorView bias = store_->fused_value(*biases_.front(), *biases_.back());
  if (accumulate == Accumulate::no) {
    matmul_with_bias(ctx.stream, x, Transpose::no, weight(), Transpose::yes, bias, y);
    return;
  }
  matmul(ctx.stream, x, Transpose::no, weight(), Transpose::yes, accumulate, y);
  add_bias(ctx.stream, bias, y);
}

void Linear::backward(StepContext& ctx, ConstTensorView dy, ConstTensorView x, TensorView dx,
                      Accumulate accumulate) {
  backward_weight(ctx, dy, x);
  if (dx) backward_input(ctx, dy, dx, accumulate);
}

void Linear::backward_input(StepContext& ctx, ConstTensorView dy, TensorView dx,
                            Accumulate accumulate) const {
  matmul(ctx.stream, dy, Transpose::no, weight(), Transpose::no, accumulate, dx);
}

void Linear::backward_weight(StepContext& ctx, ConstTensorView dy, ConstTensorView x) {
  // The weights are always used together.
  Accumulate accumulate = Accumulate::yes;
  for (Parameter* weight : weights_) accumulate = weight->begin_gradient();
  matmul(ctx.stream, dy, Transpose::yes, x, Transpose::no, accumulate, weight_grad());
  if (!biases_.empty()) {
    add_bias_backward(ctx.stream, ctx.scratch, dy,
                      store_->fused_grad(*biases_.front(), *biases_.back()));
  }
}

}  // namespace switchyard
