#pragma once

#include <string>

#include "trainer/config/run_config.h"
#include "trainer/training/session.h"

namespace switchyard {

// Loads the weights of the run's newest intact checkpoint, or of the one that checkpoint.resume
// names, into the session's model. Returns its name and step for people. Collective over the world;
// throws CollectiveError where there is none.
std::string load_newest_model(MpiRuntime& mpi, const RunConfig& config, Session& session);

}  // namespace switchyard
