#pragma once

#include <cstdint>

// What the CUDA kernels take at most where the CPU has no limit. The kernels check it, and so does
// the configuration of a run before it starts.
namespace switchyard::cuda_limits {

constexpr int64_t kHeadDim = 256;
constexpr int64_t kExperts = 512;
constexpr int64_t kTopK = 32;          // experts of a token
constexpr int64_t kExpertGroups = 32;  // of a router
constexpr int64_t kNormWidth = 16384;  // elements of a row that is normalised

}  // namespace switchyard::cuda_limits
