#pragma once

#include <cstdint>

namespace switchyard {

// ceiling.cpp measures a CUDA device with matrices that fill it and copies larger than its caches.
constexpr int64_t kWidth = 8192, kCopyBytes = int64_t{1} << 30;
// How often the methods of an op are measured, and how many runs are timed together.
constexpr int kMethodTries = 3, kMethodRuns = 2;

}  // namespace switchyard
