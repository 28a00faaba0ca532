#pragma once

#include <string>
#include <vector>

#include "parallel/distributed_context.h"
#include "trainer/config/config_reader.h"

namespace switchyard {

// Rank 0 reads the files; all ranks get what it read, or throw the ConfigError that it met. So the
// experiment need not be on every machine, and cannot differ between them. Not validated yet.
// Collective over the world.
LoadedConfig load_shared_config(MpiRuntime& mpi, const std::string& path,
                                const std::vector<std::string>& overrides);

}  // namespace switchyard
