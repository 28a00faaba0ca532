#pragma once

#include <cstddef>
#include <string>

#include "kernels/runtime/device.h"

namespace switchyard::cuda {

// Throws Error, which names `work`, if the stream's device has less shared memory for a block than
// these bytes. Devices of one architecture family differ: 99 KiB (RTX 30 to 50, L40) to 227 KiB
// (H100).
void require_shared_memory(const Stream& stream, size_t num_bytes, const std::string& work);

}  // namespace switchyard::cuda
