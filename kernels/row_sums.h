#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace switchyard::cpu {

// Sums the gradients of per-column parameters over rows: body(row, sums) adds one row's part to
// `columns` f32 sums. Rows go in blocks of a fixed size, one task each, and the blocks' sums are
// added in order, so the result does not depend on the number of threads. The blocks' sums need
// rows / kRowsPerBlock * columns floats.
template <class Body>
void accumulate_over_rows(int64_t rows, int64_t columns, float* total, const Body& body) {
  constexpr int64_t kRowsPerBlock = 64;
  const int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  std::vector<float> partial(static_cast<size_t>(blocks * columns), 0.0f);
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t end = std::min(rows, (b + 1) * kRowsPerBlock);
    for (int64_t row = b * kRowsPerBlock; row < end; ++row) {
      body(row, partial.data() + b * columns);
    }
  }
  for (int64_t b = 0; b < blocks; ++b) {
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) total[i] += partial[static_cast<size_t>(b * columns + i)];
  }
}

}  // namespace switchyard::cpu
