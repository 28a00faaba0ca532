#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/activation.h"
#include "layers/build_context.h"
#include "layers/step_context.h"

namespace switchyard {

// The experts of this rank: for the rows of each, w * down(activation(up(x))), where w is the
// router's weight of the (token, expert) pair. The weight is applied to the activation: `down` is
// linear, so the result is the same, and its gradient is a dot product of the inner width.
class Experts {
 public:
  struct Saved {
    ConstTensorView x;        // [rows, width]
    ConstTensorView weights;  // [rows] f32
    TensorView up;            // [rows, expert_ffn_hidden, twice where gated] before the activation
  };

  // BigMac's experts read and write the narrow `latent` and are inflated inside; those of the other
  // structures read and write `hidden`.
  Experts(const BuildContext& build, const std::string& name);

  // What the backward pass will need of x [rows, width] and weights [rows]. Apart from `forward`,
  // so that the caller can take temporaries of its own after what stays.
  Saved save(StepContext& ctx, ConstTensorView x, ConstTensorView weights) const;
  // Rows [row_offsets[e], row_offsets[e + 1]) belong to local expert e.
  //   y [rows, width]
  void forward(StepContext& ctx, std::span<const int64_t> row_offsets, const Saved& saved,
               TensorView y) const;
  //   dx [rows, width], overwritten; dweights [rows] f32, overwritten
  void backward(StepContext& ctx, ConstTensorView dy, std::span<const int64_t> row_offsets,
                const Saved& saved, TensorView dx, TensorView dweights) const;

 private:
  void activate(StepContext& ctx, const Saved& saved, TensorView act) const;

  Activation activation_;
  int64_t ffn_hidden_;
  int64_t up_width_;  // twice ffn_hidden where gated: gate first
  DType dtype_;
  Parameter* up_;    // [local experts, up_width, width]
  Parameter* down_;  // [local experts, width, ffn_hidden]
};

}  // namespace switchyard
