#pragma once

#include <string>
#include <vector>

#include "kernels/linear/matmul.h"
#include "layers/parameter.h"
#include "layers/step_context.h"

namespace switchyard {

// y = x W^T + b. W may be several parameters that lie side by side in the store (q, k, v; gate and
// up), so that one product serves them all. The caller does the sharding and the communication.
class Linear {
 public:
  Linear() = default;
  // weights: each [out_i, in]; biases: none, or [out_i] each
  Linear(ParameterStore& store, std::vector<Parameter*> weights,
         std::vector<Parameter*> biases = {});

  //   x [tokens, in], y [tokens, out]
  // With Accumulate::yes, the result is added to y.
  void forward(StepContext& ctx, ConstTensorView x, TensorView y,
               Accumulate accumulate = Accumulate::no) const;
  // Adds to the gradients of W and b, and writes (or adds to) dx [tokens, in]; an empty dx is not
  // computed.
  void backward(StepContext& ctx, ConstTensorView dy, ConstTensorView x, TensorView dx,
                Accumulate accumulate = Accumulate::no);
  // The two halves of `backward`, for callers that do other work between them.
  void backward_input(StepContext& ctx, ConstTensorView dy, TensorView dx,
                      Accumulate accumulate = Accumulate::no) const;
  void backward_weight(StepContext& ctx, ConstTensorView dy, ConstTensorView x);

  int64_t out_features() const;

 private:
  ConstTensorView weight() const;
  TensorView weight_grad();

  ParameterStore* store_ = nullptr;
  std::vector<Parameter*> weights_;
  std::vector<Parameter*> biases_;
};

}  // namespace switchyard
