#pragma once

#include <cstdint>
#include <vector>

#include "layers/micro_batch.h"
#include "parallel/distributed_context.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// This rank's part of global batch `step` of an endless random text, the same on every layout.
std::vector<MicroBatch> random_batches(const RunConfig& config, const DistributedContext& dist,
                                       int64_t step);

}  // namespace switchyard
