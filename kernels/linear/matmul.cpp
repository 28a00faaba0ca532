#include "kernels/linear/matmul.h"

#include <algorithm>

#include "kernels/cpu/few_rows.h"
#include "kernels/cpu/onednn_matmul.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

MatrixOperand operand(ConstTensorView x, Transpose transpose = Transpose::no) {
  return {x.raw(), x.dim(-1), transpose};
}

MatrixProduct product_of(ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                         Transpose transpose_b, Accumulate accumulate, TensorView c) {
  return {.m = c.dim(0),
          .n = c.dim(1),
          .k = a.dim(transpose_a == Transpose::yes ? 0 : 1),
          .dtype = a.dtype(),
          .a = operand(a, transpose_a),
          .b = operand(b, transpose_b),
          .c = c.raw(),
          .c_stride = c.dim(1),
          .c_dtype = c.dtype(),
          .accumulate = accumulate};
}

ConstTensorView expert_slice(ConstTensorView weight, int64_t expert) {
  return weight.rows(expert, 1).reshape({weight.dim(1), weight.dim(2)});
}

TensorView expert_slice(TensorView weight, int64_t expert) {
  return weight.rows(expert, 1).reshape({weight.dim(1), weight.dim(2)});
}

// The rows of one expert.
template <class View>
View group(View x, std::span<const int64_t> row_offsets, int64_t expert) {
  const auto e = static_cast<size_t>(expert);
  return x.rows(row_offsets[e], row_offsets[e + 1] - row_offsets[e]);
}

// Computes product_of_expert(e) for every expert. One loop distributes the blocks of all experts,
// so that every thread has whole products to compute, even if experts are small. The numbers in a
// block do not depend on the thread, so dynamic scheduling stays deterministic.
template <class ProductOfExpert>
void compute_grouped(int64_t num_experts, const ProductOfExpert& product_of_expert) {
  const auto blocks_of = [](const MatrixProduct& p) { return ProductBlocks(p.m, p.n); };
  int64_t num_blocks = 0;
  for (int64_t e = 0; e < num_experts; ++e) num_blocks += blocks_of(product_of_expert(e)).count();
#pragma omp parallel
  {
    // A thread gets its blocks in ascending order, so its expert index only increases.
    int64_t expert = -1, first = 0, end = 0;
    MatrixProduct product;
    TransposedOperand kept;
#pragma omp for schedule(monotonic : dynamic)
    for (int64_t i = 0; i < num_blocks; ++i) {
      while (i >= end) {
        product = product_of_expert(++expert);
        first = end;
        end += blocks_of(product).count();
      }
      compute_block(blocks_of(product).block(product, i - first), kept);
    }
  }
}

void show_products(Stream& stream, const Products& products) {
  if (stream.observer()) stream.observer()->products(products);
}

void require_operand_dtype(ConstTensorView x, const char* name) {
  require(x.dtype() == DType::f32 || x.dtype() == DType::bf16, "{} is {}, expected f32 or bf16",
          name, to_string(x.dtype()));
}

void require_row_offsets(std::span<const int64_t> row_offsets, int64_t num_experts, int64_t rows) {
  require(std::ssize(row_offsets) == num_experts + 1,
          "row_offsets has {} entries, expected {} for {} experts", row_offsets.size(),
          num_experts + 1, num_experts);
  require(row_offsets.front() == 0 && row_offsets.back() == rows,
          "row_offsets covers rows [{}, {}), expected [0, {})", row_offsets.front(),
          row_offsets.back(), rows);
  require(std::is_sorted(row_offsets.begin(), row_offsets.end()), "row_offsets must not decrease");
}

void require_grouped(ConstTensorView x, const char* x_name, ConstTensorView weight,
                     const char* weight_name, std::span<const int64_t> row_offsets) {
  require_operand_dtype(x, x_name);
  require(x.rank() == 2, "{} has shape {}, expected two dimensions", x_name, x.shape());
  require(weight.rank() == 3, "{} has shape {}, expected [experts, out, in]", weight_name,
          weight.shape());
  require_row_offsets(row_offsets, weight.dim(0), x.dim(0));
}

}  // namespace

void matmul(Stream& stream, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
            Transpose transpose_b, Accumulate accumulate, TensorView c) {
  require_operand_dtype(a, "a");
  require_dtype(b, a.dtype(), "b");
  require(c.dtype() == DType::f32 || c.dtype() == a.dtype(), "c is {}, expected f32 or {}",
          to_string(c.dtype()), to_string(a.dtype()));
  require(a.rank() == 2 && b.rank() == 2, "a has shape {} and b {}, expected two dimensions each",
          a.shape(), b.shape());
  const int ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  require(a.dim(1 - ta) == b.dim(tb), "inner dimensions differ: a {}{}, b {}{}", a.shape(),
          ta ? " transposed" : "", b.shape(), tb ? " transposed" : "");
  require_shape(c, {a.dim(ta), b.dim(1 - tb)}, "c");
  const ProductKind kind = ta   ? ProductKind::weight_gradient
                           : tb ? ProductKind::forward
                                : ProductKind::input_gradient;
  show_products(stream, {kind, a.dtype(), c.dim(0), c.dim(1), a.dim(1 - ta)});
  SWITCHYARD_BODY(stream, matmul)(stream, a, transpose_a, b, transpose_b, accumulate, c);
}

void grouped_linear_forward(Stream& stream, ConstTensorView x, ConstTensorView weight,
                            std::span<const int64_t> row_offsets, TensorView y) {
  require_grouped(x, "x", weight, "weight", row_offsets);
  require_dtype(weight, x.dtype(), "weight");
  require_dtype(y, x.dtype(), "y");
  require_shape(x, {x.dim(0), weight.dim(2)}, "x");
  require_shape(y, {x.dim(0), weight.dim(1)}, "y");
  show_products(stream, {ProductKind::forward, x.dtype(), x.dim(0), weight.dim(1), weight.dim(2),
                         row_offsets});
  SWITCHYARD_BODY(stream, grouped_linear_forward)(stream, x, weight, row_offsets, y);
}

void grouped_linear_backward_input(Stream& stream, ConstTensorView dy, ConstTensorView weight,
                                   std::span<const int64_t> row_offsets, TensorView dx) {
  require_grouped(dy, "dy", weight, "weight", row_offsets);
  require_dtype(weight, dy.dtype(), "weight");
  require_dtype(dx, dy.dtype(), "dx");
  require_shape(dy, {dy.dim(0), weight.dim(1)}, "dy");
  require_shape(dx, {dy.dim(0), weight.dim(2)}, "dx");
  show_products(stream, {ProductKind::input_gradient, dy.dtype(), dy.dim(0), weight.dim(2),
                         weight.dim(1), row_offsets});
  SWITCHYARD_BODY(stream, grouped_linear_backward_input)(stream, dy, weight, row_offsets, dx);
}

void grouped_linear_backward_weight(Stream& stream, ConstTensorView dy, ConstTensorView x,
                                    std::span<const int64_t> row_offsets, Accumulate accumulate,
                                    TensorView dweight) {
  require_grouped(dy, "dy", dweight, "dweight", row_offsets);
  require_dtype(x, dy.dtype(), "x");
  require_dtype(dweight, DType::f32, "dweight");
  require_shape(dy, {dy.dim(0), dweight.dim(1)}, "dy");
  require_shape(x, {dy.dim(0), dweight.dim(2)}, "x");
  show_products(stream, {ProductKind::weight_gradient, dy.dtype(), dweight.dim(1), dweight.dim(2),
                         dy.dim(0), row_offsets});
  SWITCHYARD_BODY(stream, grouped_linear_backward_weight)
  (stream, dy, x, row_offsets, accumulate, dweight);
}

namespace cpu {

void matmul(Stream&, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
            Transpose transpose_b, Accumulate accumulate, TensorView c) {
  const MatrixProduct product = product_of(a, transpose_a, b, transpose_b, accumulate, c);
  has_few_rows(product) ? compute_few_rows(product) : compute(product);
}

void grouped_linear_forward(Stream&, ConstTensorView x, ConstTensorView weight,
                            std::span<const int64_t> row_offsets, TensorView y) {
  compute_grouped(weight.dim(0), [&](int64_t e) {
    return product_of(group(x, row_offsets, e), Transpose::no, expert_slice(weight, e),
                      Transpose::yes, Accumulate::no, group(y, row_offsets, e));
  });
}

void grouped_linear_backward_input(Stream&, ConstTensorView dy, ConstTensorView weight,
                                   std::span<const int64_t> row_offsets, TensorView dx) {
  compute_grouped(weight.dim(0), [&](int64_t e) {
    return product_of(group(dy, row_offsets, e), Transpose::no, expert_slice(weight, e),
                      Transpose::no, Accumulate::no, group(dx, row_offsets, e));
  });
}

void grouped_linear_backward_weight(Stream&, ConstTensorView dy, ConstTensorView x,
                                    std::span<const int64_t> row_offsets, Accumulate accumulate,
                                    TensorView dweight) {
  compute_grouped(dweight.dim(0), [&](int64_t e) {
    return product_of(group(dy, row_offsets, e), Transpose::yes, group(x, row_offsets, e),
                      Transpose::no, accumulate, expert_slice(dweight, e));
  });
}

}  // namespace cpu

}  // namespace switchyard
