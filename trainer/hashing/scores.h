#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace switchyard {

// scores[i] = q . k[i], on the calling thread alone, because it is too little work to share.
//   q  [head_dim], k  [scores.size(), head_dim]
inline void score_keys(std::span<const float> q, const float* k, std::span<float> scores) {
  const auto head_dim = static_cast<int64_t>(q.size());
  for (float& score : scores) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < head_dim; ++d) sum += q[static_cast<size_t>(d)] * k[d];
    score = sum;
    k += head_dim;
  }
}

// <a, b>, summed in double.
inline double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

}  // namespace switchyard
