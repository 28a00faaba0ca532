#pragma once

#include <string>
#include <vector>

#include "parallel/distributed_context.h"
#include "trainer/config/config_reader.h"

namespace switchyard {

// Rank 0 reads the files; all ranks return the same configuration, not validated yet, or throw the
// same ConfigError. So the experiment need not be on every machine, and cannot differ between them.
// Collective over the world.
LoadedConfig load_shared_config(MpiRuntime& mpi, const std::string& path,
                                const std::vector<std::string>& overrides);

}  // namespace switchyard
