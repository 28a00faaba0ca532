#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layers/build_context.h"
#include "layers/experts.h"
#include "layers/feed_forward.h"
#include "layers/linear.h"
#include "layers/router.h"
#include "layers/step_context.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

// One mixture-of-experts layer of any structure:
//   vanilla, fine_grained:  y = sum_i p_i expert_i(x)                           (BigMac eq. 1)
//   bigmac:                 y = (sum_i p_i expert_i(x Wdescend)) Wascend        (eq. 5-7, with eq.
//   1)
// plus the shared experts at full width. Router and descend both read x. Every rank holds distinct
// tokens, so the layer is the same code on every layout.
class MoeLayer {
 public:
  struct Saved {
    ConstTensorView x;  // [local_tokens, hidden]
    Router::Saved router;
    ExchangePlan plan;
    TensorView narrow;  // [local_tokens, latent]: what ascend reads; bigmac only
    Experts::Saved experts;
    FeedForward::Saved shared;
  };

  MoeLayer(const BuildContext& build, const std::string& name, int moe_layer,
           const ExchangeOptions& exchange);

  //   x, y  [local_tokens, hidden]
  void forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) const;
  //   dx    [local_tokens, hidden], overwritten
  void backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx) const;

  Router& router() { return router_; }
  // Of this layer's exchange, since the last call.
  ExchangeTraffic take_traffic() const;
  double take_exchange_seconds() { return exchange_->take_seconds(); }

 private:
  // Sends the tokens' rows `in` [local_tokens, width], chunk after chunk.
  std::vector<ChunkTransfer> start_dispatch(StepContext& ctx, const ExchangePlan& plan,
                                            ConstTensorView in, ConstTensorView weights) const;
  // The experts' work on each chunk as it arrives, and what they give on its way back.
  //   y  [expert_rows, width]: stays until the combine is finished
  void forward_experts(StepContext& ctx, const Saved& saved, std::vector<ChunkTransfer>& transfers,
                       TensorView y) const;
  // Likewise; the gradients of the experts' weights are computed behind the way back.
  struct ExpertGradients;
  void backward_experts(StepContext& ctx, const Saved& saved, std::vector<ChunkTransfer>& transfers,
                        const ExpertGradients& gradients) const;
  void backward_routed(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx,
                       TensorView drouted, TensorView dtopk_weights) const;
  void finish_forward(StepContext& ctx, std::vector<ChunkTransfer>& transfers, TensorView routed,
                      TensorView y) const;

  int64_t latent_ = 0;  // bigmac; 0 otherwise
  DType dtype_;
  Router router_;
  Experts experts_;
  std::optional<Linear> descend_, ascend_;    // bigmac
  std::optional<FeedForward> shared_;         // with shared experts
  std::unique_ptr<ExpertExchange> exchange_;  // counts its traffic while the layer is const
};

}  // namespace switchyard
