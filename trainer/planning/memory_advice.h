#pragma once

#include <cstdint>
#include <string>

#include "trainer/config/run_config.h"

namespace switchyard {

// Advice after training has run out of memory: how much a rank needs by the plan, and which changes
// of the configuration would fit into its `available` bytes, each with the bytes it needs.
// `config` must have been validated for `world_size` ranks, and its model.vocab_size must not be 0.
std::string advise_on_memory(const RunConfig& config, int world_size, int64_t available);

}  // namespace switchyard
