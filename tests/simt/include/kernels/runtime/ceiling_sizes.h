#pragma once

#include <cstdint>

namespace switchyard {

// An emulated device has no speed that is worth knowing.
constexpr int64_t kWidth = 64, kCopyBytes = int64_t{1} << 16;

}  // namespace switchyard
