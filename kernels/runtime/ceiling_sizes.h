#pragma once

#include <cstdint>

namespace switchyard {

// ceiling.cpp measures a CUDA device with matrices that fill it and copies larger than its caches.
constexpr int64_t kWidth = 8192, kCopyBytes = int64_t{1} << 30;

}  // namespace switchyard
