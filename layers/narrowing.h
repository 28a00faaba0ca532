#pragma once

#include <optional>
#include <string>

#include "layers/build_context.h"
#include "layers/linear.h"
#include "layers/step_context.h"

namespace switchyard {

// BigMac's shared projections around the exchange: descend narrows a token before it is sent to its
// experts, ascend widens the sum of their results again (arXiv 2502.16927, eq. 2). In models of
// another structure both are the identity, and rows are sent at full width.
class Narrowing {
 public:
  struct Saved {
    ConstTensorView x;  // [local_tokens, hidden]
    TensorView latent;  // [local_tokens, latent] the input of ascend; empty without BigMac
  };
  // Rows of all local tokens, [local_tokens, width]. `back` may be the memory of `out`: no row
  // comes back before all rows have left.
  struct Rows {
    ConstTensorView out;  // the rows to send
    TensorView back;      // where the returned rows are written
  };

  Narrowing(const BuildContext& build, const std::string& name);

  // `y` is where ascend will add or write its result.
  //   x, y  [local_tokens, hidden]
  Rows descend(StepContext& ctx, ConstTensorView x, TensorView y, Accumulate into_y,
               Saved& saved) const;
  // Takes the rows of some tokens. It does nothing where the rows came back into y itself.
  //   back  [rows, width]
  //   y     [rows, hidden]
  void ascend(StepContext& ctx, ConstTensorView back, TensorView y, Accumulate into_y) const;

  // The backward pass of ascend, whose input's gradient is sent to the experts, and of descend.
  //   dy, dx  [local_tokens, hidden]
  Rows backward_ascend(StepContext& ctx, ConstTensorView dy, TensorView dx,
                       Accumulate into_dx) const;
  void backward_ascend_weight(StepContext& ctx, ConstTensorView dy, const Saved& saved);
  void backward_descend(StepContext& ctx, ConstTensorView back, const Saved& saved, TensorView dx,
                        Accumulate into_dx);

 private:
  TensorView place_for_return(StepContext& ctx, TensorView to, Accumulate accumulate) const;
  void join(StepContext& ctx, ConstTensorView back, TensorView to, Accumulate accumulate) const;

  int64_t latent_ = 0;
  std::optional<Linear> descend_, ascend_;  // BigMac only
};

}  // namespace switchyard
