#pragma once

#include <memory>

#include "parallel/expert_exchange.h"

namespace switchyard {

// The exchange of a group of one rank, which sends no rows. Experts read the rows of the tokens,
// and the combine reads the rows of the experts, in one chunk.
//   counted_share  see ExchangeOptions
std::unique_ptr<ExpertExchange> make_local_exchange(Device device, int num_experts,
                                                    double counted_share);

}  // namespace switchyard
