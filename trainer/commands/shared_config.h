#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/distributed_context.h"
#include "trainer/config/checkpoint_config.h"
#include "trainer/config/config_reader.h"

namespace switchyard {

// How a command depends on a checkpoint.
struct CheckpointNeed {
  std::optional<CheckpointUse> use;  // none: the command loads no checkpoint
  bool must_exist = false;           // an error if there is none that can be loaded; training that
                                     // names none may start afresh
};

// Rank 0 reads the files; all ranks return the same configuration, not validated yet, or throw the
// same ConfigError. So the experiment need not be on every machine, and cannot differ between them.
// What decides the model is taken from the checkpoint that the command will load, if there is one
// (see adopt_checkpoint_config). For inference, `path` may also be a run folder or a checkpoint,
// whose configuration is taken. Collective over the world; throws CollectiveError if a checkpoint
// must exist and does not, or cannot be read.
LoadedConfig load_shared_config(MpiRuntime& mpi, const std::string& path,
                                const std::vector<std::string>& overrides,
                                const CheckpointNeed& need);

}  // namespace switchyard
