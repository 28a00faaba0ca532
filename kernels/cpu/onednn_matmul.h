#pragma once

#include <cstdint>

#include "kernels/linear/block_product.h"
#include "kernels/linear/matmul.h"

namespace switchyard {

// Matrix products of the CPU backend, for op bodies that need strided blocks. oneDNN computes them;
// only the .cpp file knows its interface.

// c [m, n] = op(a) [m, k] op(b) [k, n], or += where accumulating. Sums are f32.
struct MatrixProduct {
  int64_t m = 0, n = 0, k = 0;
  DType dtype{};  // of a and b: f32 or bf16
  MatrixOperand a, b;
  void* c = nullptr;
  int64_t c_stride = 0;
  DType c_dtype{};  // f32, or dtype
  Accumulate accumulate = Accumulate::no;
};

// Cuts c into blocks, each computed by one thread alone. Depends on the shape only, so that results
// do not depend on the number of threads.
class ProductBlocks {
 public:
  ProductBlocks(int64_t m, int64_t n);

  int64_t count() const { return row_blocks_ * col_blocks_; }
  // The part of `product` [m, n] that makes block `index` of c.
  MatrixProduct block(const MatrixProduct& product, int64_t index) const;

 private:
  int64_t row_blocks_, col_blocks_;
  int64_t rows_, cols_;  // of one block; the last ones are smaller
};

// Computes on all OpenMP threads, block by block.
void compute(const MatrixProduct& product);

// Computes on the calling thread alone. Call it inside a parallel region: outside, oneDNN would
// open its own.
void compute_block(const MatrixProduct& product);

// The two ways of compute_block for bf16 operands; it takes the first where the CPU has AMX, else
// the second. Without AMX the bf16 dot product instruction of Intel's cores runs at half the rate
// of f32 FMA: 85 GFLOP/s per thread, where widening to f32 makes 150.
void compute_block_native_bf16(const MatrixProduct& product);
void compute_block_widened_bf16(const MatrixProduct& product);

}  // namespace switchyard
