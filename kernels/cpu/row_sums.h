#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "kernels/runtime/integers.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cpu {

// Sums the gradients of per-column parameters over rows: body(row, sums) adds one row's part to
// `columns` f32 sums. Rows go in blocks of a fixed size, one task each, and the blocks' sums are
// added in order, so the result does not depend on the number of threads. The blocks' sums take
// rows / kRowsPerBlock * columns floats of the workspace.
template <class Body>
void accumulate_over_rows(Workspace& workspace, int64_t rows, int64_t columns, float* total,
                          const Body& body) {
  constexpr int64_t kRowsPerBlock = 64;
  const int64_t blocks = ceil_div(rows, kRowsPerBlock);
  WorkspaceScope scope(workspace);
  float* partial = workspace.take({blocks, columns}, DType::f32).data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    float* sums = partial + b * columns;
    std::fill_n(sums, columns, 0.0f);
    const int64_t end = std::min(rows, (b + 1) * kRowsPerBlock);
    for (int64_t row = b * kRowsPerBlock; row < end; ++row) body(row, sums);
  }
  for (int64_t b = 0; b < blocks; ++b) {
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) total[i] += partial[b * columns + i];
  }
}

}  // namespace switchyard::cpu
