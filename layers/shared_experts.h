#pragma once

#include <optional>
#include <string>

#include "layers/build_context.h"
#include "layers/f32_linear.h"
#include "layers/feed_forward.h"
#include "layers/step_context.h"

namespace switchyard {

// The experts that every token visits: side by side they are one feed-forward of their joint width.
// With a gate, as Qwen1.5-MoE has it, a token's output is multiplied by sigmoid(x . w).
class SharedExperts {
 public:
  struct Saved {
    FeedForward::Saved experts;
    ConstTensorView x;                 // [local_tokens, hidden]; this and the following: gate only
    TensorView logits, scores, gates;  // [local_tokens, 1] f32
    TensorView lse;                    // [local_tokens] f32
    TensorView indices;                // [local_tokens, 1] i32, all 0
  };

  SharedExperts(const BuildContext& build, const std::string& name);

  //   x, y  [local_tokens, hidden]
  void forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) const;
  //   dx    [local_tokens, hidden], overwritten
  void backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx);

 private:
  void open_gates(StepContext& ctx, ConstTensorView x, Saved& saved) const;

  FeedForward experts_;
  std::optional<F32Linear> gate_;
};

}  // namespace switchyard
