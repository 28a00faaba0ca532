#pragma once

#include "kernels/runtime/device.h"

namespace switchyard::test {

// Launches a kernel of two blocks whose first thread writes what it finds in static shared memory,
// which it then changes, to out[block].
void read_uninitialised_shared_memory(Stream& stream, float* out);

}  // namespace switchyard::test
