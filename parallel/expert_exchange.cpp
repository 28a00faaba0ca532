#include "parallel/expert_exchange.h"

#include "kernels/runtime/check.h"
#include "parallel/all_to_all_exchange.h"
#include "parallel/local_exchange.h"

namespace switchyard {

std::unique_ptr<ExpertExchange> make_expert_exchange(Communicator& ep, Device device,
                                                     int num_experts,
                                                     const ExchangeOptions& options) {
  require(num_experts % ep.size() == 0,
          "parallel.ep = {} does not divide model.num_experts = {}; choose a divisor", ep.size(),
          num_experts);
  if (ep.size() == 1) return make_local_exchange(device, num_experts, options.counted_share);
  return std::make_unique<AllToAllExchange>(ep, device, num_experts, options);
}

}  // namespace switchyard
