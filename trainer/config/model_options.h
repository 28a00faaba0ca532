#pragma once

#include "layers/transformer.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// The options of a configuration's model, for training and for the planner, which counts what
// training will need.
//   transfers_behind_compute  see DistributedContext; decides the number of chunks of the exchange
//                             if parallel.exchange_chunks is 0
TransformerOptions transformer_options(const RunConfig& config, bool transfers_behind_compute);

}  // namespace switchyard
