#pragma once

#include <cstdint>

#include "parallel/communicator.h"

namespace switchyard {

// Most memory that this process has held at any one time (its resident set), in bytes.
int64_t peak_memory_bytes();
// Of the rank that needed most; on a CUDA device what is in use there now, by all that share it (a
// rank keeps what it has allocated). Collective.
int64_t peak_memory_bytes(Stream& stream, Communicator& world);

}  // namespace switchyard
