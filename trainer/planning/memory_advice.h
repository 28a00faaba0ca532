#pragma once

#include <cstdint>
#include <string>

#include "trainer/config/run_config.h"

namespace switchyard {

// For people whose training ran out of memory: what a rank needs by the plan, and which changes of
// the configuration would fit into the `available` bytes that it has, each with what it needs.
// `config` has been validated for `world_size` ranks and knows its vocabulary's size.
std::string advise_on_memory(const RunConfig& config, int world_size, int64_t available);

}  // namespace switchyard
