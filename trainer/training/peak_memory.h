#pragma once

#include <cstdint>

#include "parallel/communicator.h"

namespace switchyard {

// Most memory that this process has held at any one time (its resident set), in bytes.
int64_t peak_memory_bytes();
// Of the rank that needed most. Collective.
int64_t peak_memory_bytes(Stream& stream, Communicator& world);

}  // namespace switchyard
