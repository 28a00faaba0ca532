#pragma once

#include <cstdint>

namespace switchyard {

// The sizes are small because the speed of an emulated device does not matter.
constexpr int64_t kWidth = 64, kCopyBytes = int64_t{1} << 16;
constexpr int kMethodTries = 1, kMethodRuns = 1;

}  // namespace switchyard
