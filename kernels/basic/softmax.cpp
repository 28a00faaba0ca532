#include "kernels/basic/softmax.h"

#include <algorithm>
#include <cmath>

#include "kernels/inline/vector_math.h"

namespace switchyard {

double softmax(float scale, std::span<float> x) {
  const float top = scale * *std::ranges::max_element(x);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = fast_exp(scale * x[i] - top);
    sum += x[i];
  }
  for (float& value : x) value /= sum;
  return double{top} + std::log(double{sum});
}

}  // namespace switchyard
