#pragma once

#include <cstdint>

namespace simt {

// Calls of the emulated CUTLASS so far.
int64_t cutlass_calls();

}  // namespace simt
