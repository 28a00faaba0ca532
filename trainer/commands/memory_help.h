#pragma once

#include <functional>

#include "parallel/distributed_context.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// Runs `body`, which trains as `config` describes. If this rank runs out of memory in it, an Error
// is thrown that also says which settings would fit.
int with_memory_help(const MpiRuntime& mpi, const RunConfig& config,
                     const std::function<int()>& body);

}  // namespace switchyard
