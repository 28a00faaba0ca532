#pragma once

#include <cstdint>

#include "kernels/runtime/device.h"

namespace switchyard {

// The peak of this process's resident set, in bytes; on a CUDA device the memory in use there now
// by all processes that share it (a rank keeps what it has allocated).
int64_t peak_memory_bytes(Device device);

}  // namespace switchyard
