#pragma once

#include "kernels/cpu/onednn_matmul.h"

namespace switchyard {

// Products of a few rows with a transposed matrix, c = a b^T: a step of decoding, which is as fast
// as the memory can deliver b. oneDNN first copies b into blocks, which pays off only if many rows
// use them. Sums are f32, in an order that does not depend on the number of threads.
bool has_few_rows(const MatrixProduct& product);

// Computes such a product on all OpenMP threads.
void compute_few_rows(const MatrixProduct& product);

}  // namespace switchyard
