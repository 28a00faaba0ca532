#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/basic/activation.h"
#include "layers/build_context.h"
#include "layers/step_context.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

// The experts of this rank: for the rows of each, w * down(activation(up(x))), where w is the
// router's weight of the (token, expert) pair. The weight is applied to the activation: `down` is
// linear, so the result is the same, and its gradient is a dot product of the inner width.
class Experts {
 public:
  struct Saved {
    TensorView x;        // [rows, width]
    TensorView weights;  // [rows] f32
    TensorView up;       // [rows, expert_ffn_hidden, twice where gated] before the activation

    // Those of the rows of one chunk.
    Saved of(const ExchangeChunk& chunk) const {
      return {chunk.of_experts(x), chunk.of_experts(weights), chunk.of_experts(up)};
    }
  };
  // What backward_input leaves for backward_weight.
  struct Inner {
    TensorView act;  // [rows, expert_ffn_hidden]
    TensorView dup;  // as Saved::up

    Inner of(const ExchangeChunk& chunk) const {
      return {chunk.of_experts(act), chunk.of_experts(dup)};
    }
  };

  // BigMac's experts read and write the narrow `latent` and are inflated inside; those of the other
  // structures read and write `hidden`.
  Experts(const BuildContext& build, const std::string& name);

  // Memory for `rows` expert rows, which the caller fills with x and weights.
  Saved save(StepContext& ctx, int64_t rows) const;
  // Rows [row_offsets[e], row_offsets[e + 1]) belong to local expert e.
  //   y [rows, width]
  void forward(StepContext& ctx, std::span<const int64_t> row_offsets, const Saved& saved,
               TensorView y) const;

  // The backward pass in two halves: what the gradients of the weights cost can hide the way back
  // of dx.
  Inner take_inner(StepContext& ctx, int64_t rows) const;
  //   dx [rows, width], overwritten; dweights [rows] f32, overwritten
  void backward_input(StepContext& ctx, ConstTensorView dy, std::span<const int64_t> row_offsets,
                      const Saved& saved, const Inner& inner, TensorView dx,
                      TensorView dweights) const;
  void backward_weight(StepContext& ctx, ConstTensorView dy, std::span<const int64_t> row_offsets,
                       const Saved& saved, const Inner& inner) const;

 private:
  void activate(StepContext& ctx, const Saved& saved, TensorView act) const;

  Activation activation_;
  int64_t width_;
  int64_t ffn_hidden_;
  int64_t up_width_;  // twice ffn_hidden where gated: gate first
  DType dtype_;
  Parameter* up_;    // [local experts, up_width, width]
  Parameter* down_;  // [local experts, width, ffn_hidden]
};

}  // namespace switchyard
