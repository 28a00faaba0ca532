#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "kernels/runtime/integers.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cpu {

constexpr int64_t kRowsPerBlock = 64;

// Scratch of accumulate_over_rows: a row of sums per block of rows.
//   [blocks, columns] f32
inline TensorView row_sums_scratch(Workspace& workspace, int64_t rows, int64_t columns) {
  return workspace.take({(rows + kRowsPerBlock - 1) / kRowsPerBlock, columns}, DType::f32);
}

// Sums the gradients of per-column parameters over rows: body(row, sums) adds one row's part to
// `columns` f32 sums. Blocks of a fixed number of rows are one task each, and the blocks' sums are
// added in order, so the result does not depend on the number of threads.
template <class Body>
void accumulate_over_rows(Workspace& workspace, int64_t rows, int64_t columns, float* total,
                          const Body& body) {
  WorkspaceScope scope(workspace);
  const TensorView sums_of_blocks = row_sums_scratch(workspace, rows, columns);
  float* partial = sums_of_blocks.data<float>();
  const int64_t blocks = sums_of_blocks.dim(0);
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
