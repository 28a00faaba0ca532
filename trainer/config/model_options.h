#pragma once

#include "layers/transformer.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// How a configuration wants its model built: for the program that trains it, and for the planner
// that counts what training will take.
//   transfers_behind_compute  see DistributedContext; decides the number of chunks of the exchange
//                             where the configuration leaves it open
TransformerOptions transformer_options(const RunConfig& config, bool transfers_behind_compute);

}  // namespace switchyard
