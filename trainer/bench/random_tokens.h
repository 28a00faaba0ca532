#pragma once

#include <cstdint>

#include "trainer/config/run_config.h"

namespace switchyard {

// Token `index` of an endless random text, which the run's seed decides.
int32_t random_token(const RunConfig& config, int64_t index);

}  // namespace switchyard
