#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layers/build_context.h"
#include "layers/experts.h"
#include "layers/narrowing.h"
#include "layers/router.h"
#include "layers/shared_experts.h"
#include "layers/step_context.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

// One mixture-of-experts layer of any structure:
//   vanilla, fine_grained:  y = sum_i p_i expert_i(x)
//   bigmac:                 y = (sum_i p_i expert_i(x Wdescend)) Wascend
// (BigMac, arXiv 2502.16927, eq. 2), plus the shared experts at full width. Router and descend both
// read x. Every rank holds distinct tokens, so the layer is the same code on every layout.
class MoeLayer {
 public:
  struct Saved {
    Router::Saved router;
    // Given: kept from an earlier pass over the same tokens, which forward uses again.
    std::shared_ptr<ExchangePlan> plan;
    Workspace* plan_memory = nullptr;  // of a new plan; null: ctx.saved
    Narrowing::Saved narrowing;
    std::vector<Experts::Saved> experts;  // of each chunk
    SharedExperts::Saved shared;
  };

  // `moe_layer` counts the MoE layers of the model from 0.
  MoeLayer(const BuildContext& build, const std::string& name, int moe_layer,
           const ExchangeOptions& exchange);

  //   x, y  [local_tokens, hidden]
  void forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved);
  //   dx    [local_tokens, hidden], overwritten
  void backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx);

  Router& router() { return router_; }
  ExpertExchange& exchange() { return *exchange_; }

 private:
  using Transfers = std::vector<std::unique_ptr<ChunkTransfer>>;

  // Of a decoding step on a device, whose experts are all on this rank: no row moves and the host
  // waits for nothing.
  bool computes_by_slot(const StepContext& ctx, ConstTensorView x) const;
  void forward_by_slot(StepContext& ctx, const Narrowing::Rows& rows, const Saved& saved) const;
  void forward_experts(StepContext& ctx, const Transfers& chunks, Saved& saved) const;
  std::unique_ptr<ValueTransfer> backward_experts(StepContext& ctx, const Transfers& chunks,
                                                  const Saved& saved);
  Accumulate into_shared() const { return shared_ ? Accumulate::yes : Accumulate::no; }

  Router router_;
  Narrowing narrowing_;
  Experts experts_;
  std::optional<SharedExperts> shared_;
  std::unique_ptr<ExpertExchange> exchange_;
  bool has_all_experts_;  // on this rank
};

}  // namespace switchyard
