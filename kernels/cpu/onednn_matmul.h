#pragma once

#include <cstdint>

#include "kernels/linear/block_product.h"
#include "kernels/linear/matmul.h"

namespace switchyard {

// Matrix products of the CPU backend, for op bodies that need strided blocks. oneDNN computes them;
// this header does not depend on it.

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

// Cuts c into blocks; one thread computes each. The cut depends on the shape only, so that results
// do not depend on the number of threads. Blocks of the same columns, and so of the same part of b,
// come one after the other.
class ProductBlocks {
 public:
  ProductBlocks(int64_t m, int64_t n);

  int64_t count() const { return row_blocks_ * col_blocks_; }
  // The part of `product` [m, n] that makes block `index` of c.
  MatrixProduct block(const MatrixProduct& product, int64_t index) const;

 private:
  int64_t row_blocks_, col_blocks_;
  int64_t rows_, cols_;  // of one block; the last blocks may be smaller
};

// The f32 b of a thread's last block, transposed back, for the next block of the same columns. It
// lives in one parallel region, in which b does not change, and not beside another in its thread.
class TransposedOperand {
 public:
  // op(b) [k, n], stored densely; `b` is stored as [n, k].
  const float* of(const MatrixOperand& b, int64_t k, int64_t n);

 private:
  const void* data_ = nullptr;
  int64_t stride_ = 0, k_ = 0, n_ = 0;
};

// Computes the product on all OpenMP threads, block by block.
void compute(const MatrixProduct& product);

// Computes the product on the calling thread only, inside a parallel region or outside one.
void compute_block(const MatrixProduct& product);
void compute_block(const MatrixProduct& product, TransposedOperand& kept);

// The two methods of compute_block for bf16 operands; see bf16_method.h.
void compute_block_native_bf16(const MatrixProduct& product);
void compute_block_widened_bf16(const MatrixProduct& product);
// Whether oneDNN has bf16 products for this processor.
bool has_native_bf16();

}  // namespace switchyard
