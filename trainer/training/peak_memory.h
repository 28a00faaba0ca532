#pragma once

#include <cstdint>

#include "kernels/runtime/device.h"

namespace switchyard {

// Most memory that this process has held at any one time (its resident set), in bytes; on a CUDA
// device what is in use there now, by all that share it (a rank keeps what it has allocated).
int64_t peak_memory_bytes(Device device);

}  // namespace switchyard
