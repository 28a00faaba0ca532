#include "trainer/hashing/levels.h"

#include <cmath>

#include "kernels/decode/hash_encode.h"

namespace switchyard {

std::vector<float> round_to_levels(ConstTensorView x, int64_t planes, TensorView levels) {
  const int64_t rows = x.dim(0), columns = x.dim(1);
  std::vector<float> lengths(static_cast<size_t>(rows));
  const auto half = static_cast<float>(1 << (planes - 1));
  const float steps = std::sqrt(static_cast<float>(columns)) / key_step(planes);
#pragma omp parallel for
  for (int64_t i = 0; i < rows; ++i) {
    const float* values = x.data<float>() + i * columns;
    float* rounded = levels.data<float>() + i * columns;
    float squares = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < columns; ++j) squares += values[j] * values[j];
    const float per_step = squares > 0.0f ? steps / std::sqrt(squares) : 0.0f;
#pragma omp simd reduction(+ : product)
    for (int64_t j = 0; j < columns; ++j) {
      const float value = values[j];
      const float level = std::floor(value * per_step);
      const float from_lowest = level > -half ? level : -half;
      rounded[j] = 2.0f * (from_lowest < half - 1.0f ? from_lowest : half - 1.0f) + 1.0f;
      product += value * rounded[j];
    }
    lengths[static_cast<size_t>(i)] = product > 0.0f ? squares / product : 0.0f;
  }
  return lengths;
}

}  // namespace switchyard
