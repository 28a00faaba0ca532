#include "kernels/basic/soft_sign.h"

#include <cstdint>

#include "kernels/inline/vector_math.h"

namespace switchyard {

void soft_sign(float steepness, std::span<float> x) {
  const auto count = static_cast<int64_t>(x.size());
  float* values = x.data();
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    values[i] = 2.0f * fast_sigmoid(steepness * values[i]) - 1.0f;
  }
}

}  // namespace switchyard
