#include "layers/shared_experts.h"

#include "kernels/moe/router.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

// A gate is a router with one expert: the weight of that expert is the sigmoid of its logit.
constexpr RouterOptions kGate{.score = RouterScore::sigmoid, .top_k = 1};

}  // namespace

SharedExperts::SharedExperts(const BuildContext& build, const std::string& name)
    : experts_(build, name + ".shared",
               build.config.num_shared_experts * build.config.shared_expert_ffn_hidden,
               /*bias=*/false, Part::moe_shared_experts) {
  // One row is no matrix that Muon could make orthogonal.
  if (build.config.shared_expert_gate) {
    gate_.emplace(build, name + ".shared_gate", /*out=*/1, /*hidden_matrices=*/0);
  }
}

void SharedExperts::open_gates(StepContext& ctx, ConstTensorView x, Saved& saved) const {
  const ScopedPart part(ctx.stream, Part::moe_shared_experts);
  const Shape shape{x.dim(0), 1};
  saved.x = x;
  saved.logits = ctx.saved.take(shape, DType::f32);
  saved.scores = ctx.saved.take(shape, DType::f32);
  saved.gates = ctx.saved.take(shape, DType::f32);
  saved.lse = ctx.saved.take({x.dim(0)}, DType::f32);
  saved.indices = ctx.saved.take(shape, DType::i32);
  gate_->forward(ctx, x, saved.logits);
  router_forward(ctx.stream, ctx.scratch, kGate, ctx.local_range(), saved.logits, /*bias=*/{},
                 saved.scores, saved.lse, saved.indices, saved.gates, /*counts=*/{},
                 /*prob_sums=*/{});
}

void SharedExperts::forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) const {
  if (gate_) open_gates(ctx, x, saved);
  experts_.forward(ctx, x, y, saved.experts, saved.gates);
}

void SharedExperts::backward(StepContext& ctx, ConstTensorView dy, const Saved& saved,
                             TensorView dx) {
  if (!gate_) return experts_.backward(ctx, dy, saved.experts, dx);
  WorkspaceScope scope(ctx.scratch);
  const TensorView dgates = ctx.scratch.take(saved.gates.shape(), DType::f32);
  const TensorView dlogits = ctx.scratch.take(saved.gates.shape(), DType::f32);
  experts_.backward(ctx, dy, saved.experts, dx, dgates);
  const ScopedPart part(ctx.stream, Part::moe_shared_experts);
  router_backward(ctx.stream, kGate, ctx.local_range(), saved.logits, saved.scores, saved.lse,
                  saved.indices, dgates, /*dprobs=*/{}, /*z_loss_scale=*/0.0f, dlogits);
  gate_->backward(ctx, dlogits, saved.x, dx);
}

}  // namespace switchyard
