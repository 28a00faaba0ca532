#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/exchange_messages.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

// The exchange of a group of several ranks, by all-to-all: a row goes straight to the rank of its
// expert.
class AllToAllExchange final : public ExpertExchange {
 public:
  //   hosts  the host of each rank of the group
  AllToAllExchange(Communicator& group, Device device, std::vector<int> hosts, int num_experts,
                   const ExchangeOptions& options);

  std::unique_ptr<ExchangePlan> begin_plan(Stream&, Workspace& lists, Workspace& scratch,
                                           ConstTensorView dispatch_idx) override;
  // The same with the routing of a device that only counts.
  std::unique_ptr<ExchangePlan> begin_plan(Stream&, Workspace& lists, Workspace& scratch,
                                           ConstTensorView dispatch_idx,
                                           const BalancedRouting& routing);
  void set_chunks(int chunks) override { options_.chunks = chunks; }
  ExchangeFigures take_figures() override { return link_.take_figures(); }

 private:
  ExchangeLink link_;
  int64_t num_experts_;
  ExchangeOptions options_;
};

}  // namespace switchyard
