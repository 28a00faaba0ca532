#pragma once

#include <functional>

#include "parallel/distributed_context.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// Runs `body`, which trains what `config` describes. Where this rank runs out of memory in it, the
// Error that is thrown says what would fit, too.
int with_memory_help(const MpiRuntime& mpi, const RunConfig& config,
                     const std::function<int()>& body);

}  // namespace switchyard
