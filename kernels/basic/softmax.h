#pragma once

#include <span>

namespace switchyard {

// x = softmax(scale x); returns log sum exp(scale x) before. Runs on the calling thread, in host
// memory.
//   x  at least one value
double softmax(float scale, std::span<float> x);

}  // namespace switchyard
