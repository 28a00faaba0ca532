#pragma once

#include <cstdint>
#include <memory>

#include "parallel/all_to_all_exchange.h"
#include "parallel/exchange_messages.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

// The exchange of a group whose ranks lie on several hosts, several on each. A row that ranks of
// another host want crosses the link between the hosts once: it goes to the rank of that host with
// this rank's place in its own, its relay, which spreads it inside the host by an AllToAllExchange.
// On the way back a relay sums the results of its host, and the sum crosses the link once.
//
// Rows at an expert are in the order of relay, then source host, then token. A token's results are
// summed by rank, then by host (both in the order of its slots), where AllToAllExchange sums by
// rank only.
class HostExchange final : public ExpertExchange {
 public:
  // `groups` has both groups of hosts.
  HostExchange(const ExchangeGroups& groups, Device device, int num_experts,
               const ExchangeOptions& options);

  std::unique_ptr<ExchangePlan> begin_plan(Stream&, Workspace& lists, Workspace& scratch,
                                           ConstTensorView dispatch_idx,
                                           ConstTensorView weights) override;
  void set_chunks(int chunks) override { options_.chunks = chunks; }
  ExchangeFigures take_figures() override;

 private:
  // On a device that only counts: the load of this rank's host, the mean of its ranks' loads, and
  // the routing between hosts and within one.
  double host_load() const;
  BalancedRouting routing_between(int64_t top_k) const;
  BalancedRouting routing_within(int64_t top_k) const;

  ExchangeLink between_;
  AllToAllExchange within_;
  int64_t num_experts_;
  int64_t host_, num_hosts_, rank_in_host_, ranks_per_host_;
  ExchangeOptions options_;
};

}  // namespace switchyard
