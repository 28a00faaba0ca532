#pragma once

#include <string>

#include "kernels/moe/router.h"
#include "layers/build_context.h"
#include "layers/f32_linear.h"
#include "layers/step_context.h"

namespace switchyard {

// Chooses the experts of every token, in f32, from the full-width x. It also computes the balance
// loss and the z-loss, and keeps the bias of loss-free balancing.
class Router {
 public:
  struct Saved {
    ConstTensorView x;        // [local_tokens, hidden]
    TensorView logits;        // [local_tokens, experts] f32
    TensorView scores;        // [local_tokens, experts] f32
    TensorView lse;           // [local_tokens] f32
    TensorView topk_idx;      // [local_tokens, top_k] i32, before any drop
    TensorView topk_weights;  // [local_tokens, top_k] f32
    TensorView dispatch_idx;  // [local_tokens, top_k] i32, -1: dropped
    TensorView dprobs;        // [sequences, experts] f32; empty without aux_loss_coef
  };

  // `moe_layer` counts the MoE layers of the model from 0.
  Router(const BuildContext& build, const std::string& name, int moe_layer);

  //   x  [local_tokens, hidden]
  void forward(StepContext& ctx, ConstTensorView x, Saved& saved) const;
  //   dtopk_weights  [local_tokens, top_k] f32
  //   dx             [local_tokens, hidden]  +=
  void backward(StepContext& ctx, ConstTensorView dtopk_weights, const Saved& saved, TensorView dx);

  // Moves each expert's bias by the update rate (move_balancing_bias) with loss-free balancing.
  //   global_counts  [experts] f64: assignments in the whole global batch
  void update_balancing_bias(Stream& stream, ConstTensorView global_counts);
  // [experts] f32; empty where loss-free balancing is off
  TensorView balancing_bias() { return bias_ ? bias_.view() : TensorView(); }

 private:
  void drop(StepContext& ctx, Saved& saved) const;
  bool has_balance_loss() const { return config_.aux_loss_coef > 0.0; }
  void balance(StepContext& ctx, TensorView counts, ConstTensorView prob_sums, Saved& saved) const;
  ConstTensorView global_load(StepContext& ctx, ConstTensorView counts) const;
  void count_z_loss(StepContext& ctx, const Saved& saved) const;

  RouterConfig config_;
  RouterOptions options_;
  int num_experts_;
  int moe_layer_;
  F32Linear linear_;
  Tensor bias_;  // [experts] f32
};

}  // namespace switchyard
