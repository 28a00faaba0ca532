#include "parallel/expert_exchange.h"

#include "kernels/runtime/check.h"
#include "parallel/all_to_all_exchange.h"
#include "parallel/host_exchange.h"
#include "parallel/local_exchange.h"

namespace switchyard {

std::unique_ptr<ExpertExchange> make_expert_exchange(const ExchangeGroups& groups, Device device,
                                                     int num_experts,
                                                     const ExchangeOptions& options) {
  const int ep = groups.ep.size();
  require(num_experts % ep == 0,
          "parallel.ep = {} does not divide model.num_experts = {}; choose a divisor", ep,
          num_experts);
  if (ep == 1) return make_local_exchange(device, num_experts, options.counted_share);
  if (options.deduplicate == Deduplicate::host && groups.between_hosts) {
    return std::make_unique<HostExchange>(groups, device, num_experts, options);
  }
  return std::make_unique<AllToAllExchange>(groups.ep, device, groups.hosts, num_experts, options);
}

}  // namespace switchyard
