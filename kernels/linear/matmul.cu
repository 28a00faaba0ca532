#include "kernels/linear/matmul.h"

#include <algorithm>
#include <climits>
#include <span>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/grouped_lt.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/products.h"
#include "kernels/linear/expert_product_method.h"
#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

int as_int(int64_t n) {
  require(n <= INT_MAX, "cuBLAS multiplies matrices of up to {} rows, not {}", INT_MAX, n);
  return static_cast<int>(n);
}

cudaDataType_t cublas_type(DType dtype) { return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF; }

cublasOperation_t operation(Transpose transpose) {
  return transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
}

void multiply(Stream& stream, const Product& p, DType dtype, DType c_dtype, Accumulate accumulate) {
  const float alpha = 1.0f, beta = accumulate == Accumulate::yes ? 1.0f : 0.0f;
  const cudaDataType_t type = cublas_type(dtype);
  check_cublas(
      cublasGemmEx(cublas_handle(stream), operation(p.transpose_b), operation(p.transpose_a),
                   as_int(p.n), as_int(p.m), as_int(p.k), &alpha, p.b, type, as_int(p.b_stride),
                   p.a, type, as_int(p.a_stride), &beta, p.c, cublas_type(c_dtype), as_int(p.n),
                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx");
}

// The arguments of one grouped call: every product is a group of its own.
struct GroupedArguments {
  std::vector<cublasOperation_t> transpose_a, transpose_b;
  std::vector<int> m, n, k, lda, ldb, ldc, sizes;
  std::vector<const void*> pointers;  // of all a, then of all b, then of all c
  std::vector<float> alpha, beta;

  GroupedArguments(const std::vector<Product>& products, Accumulate accumulate) {
    const size_t count = products.size();
    alpha.assign(count, 1.0f);
    beta.assign(count, accumulate == Accumulate::yes ? 1.0f : 0.0f);
    sizes.assign(count, 1);
    pointers.resize(3 * count);
    for (size_t i = 0; i < count; ++i) {
      const Product& p = products[i];
      transpose_a.push_back(operation(p.transpose_b));
      transpose_b.push_back(operation(p.transpose_a));
      m.push_back(as_int(p.n));
      n.push_back(as_int(p.m));
      k.push_back(as_int(p.k));
      lda.push_back(as_int(p.b_stride));
      ldb.push_back(as_int(p.a_stride));
      ldc.push_back(as_int(p.n));
      pointers[i] = p.b;
      pointers[count + i] = p.a;
      pointers[2 * count + i] = p.c;
    }
  }
};

// The grouped call needs the pointers on the device. Returns false if cuBLAS does not support the
// types.
bool multiply_grouped(Stream& stream, const std::vector<Product>& products, DType dtype,
                      DType c_dtype, Accumulate accumulate) {
  const GroupedArguments g(products, accumulate);
  const size_t count = products.size(), num_bytes = g.pointers.size() * sizeof(void*);
  auto* pointers = static_cast<const void**>(reduction_scratch(stream, num_bytes));
  upload(stream, std::as_bytes(std::span(g.pointers)), pointers);
  const cudaDataType_t type = cublas_type(dtype);
  const cublasStatus_t status = cublasGemmGroupedBatchedEx(
      cublas_handle(stream), g.transpose_a.data(), g.transpose_b.data(), g.m.data(), g.n.data(),
      g.k.data(), g.alpha.data(), pointers, type, g.lda.data(), pointers + count, type,
      g.ldb.data(), g.beta.data(), const_cast<void**>(pointers + 2 * count), cublas_type(c_dtype),
      g.ldc.data(), as_int(static_cast<int64_t>(count)), g.sizes.data(), CUBLAS_COMPUTE_32F);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
  check_cublas(status, "cublasGemmGroupedBatchedEx");
  return true;
}

// Without a method that was set: a product with at least this many multiplications gets its own
// launch. On an H100 the grouped call reaches 31 to 40 % of a dense product's rate at twice this
// size, and products side by side in four streams reach 43 to 45 %.
constexpr int64_t kLargeProduct = int64_t{1} << 30;

ExpertProductMethod method_by_size(const std::vector<Product>& products) {
  int64_t work = 0;
  for (const Product& p : products) work += p.m * p.n * p.k;
  return work / std::ssize(products) < kLargeProduct ? ExpertProductMethod::cublas
                                                     : ExpertProductMethod::streams;
}

// Computes one product per expert, by the method of the process if the products fit it, because a
// single one leaves most of the device idle. cuBLAS's grouped call cannot write f32 sums of bf16
// products, which the gradients of weights need; cuBLASLt's can.
void multiply_all(Stream& stream, const std::vector<Product>& products, DType dtype, DType c_dtype,
                  Accumulate accumulate) {
  if (products.empty()) return;
  if (products.size() == 1) return multiply(stream, products[0], dtype, c_dtype, accumulate);
  const bool aligned = std::ranges::all_of(
      products, [&](const Product& p) { return is_aligned(p, size_of(dtype), size_of(c_dtype)); });
  using enum ExpertProductMethod;
  ExpertProductMethod method = method_by_size(products);
  if (dtype == DType::bf16) method = expert_product_method().value_or(method);
  if (method == cublas_lt || method == cutlass) {
    if (aligned && multiply_grouped_lt(stream, products, c_dtype, accumulate)) return;
    method = method_by_size(products);
  }
  if (method == cublas && aligned && dtype == c_dtype &&
      multiply_grouped(stream, products, dtype, c_dtype, accumulate)) {
    return;
  }
  run_side_by_side(stream, std::ssize(products), [&](Stream& side, int64_t i) {
    multiply(side, products[static_cast<size_t>(i)], dtype, c_dtype, accumulate);
  });
}

// Calls product(e, first row, rows) for every expert that has rows.
template <class Make>
std::vector<Product> products_of(std::span<const int64_t> row_offsets, const Make& product) {
  std::vector<Product> products;
  for (size_t e = 0; e + 1 < row_offsets.size(); ++e) {
    const int64_t rows = row_offsets[e + 1] - row_offsets[e];
    if (rows > 0) products.push_back(product(static_cast<int64_t>(e), row_offsets[e], rows));
  }
  return products;
}

template <class View>
auto* address(View view, int64_t element) {
  using Byte = std::conditional_t<std::is_same_v<View, TensorView>, std::byte, const std::byte>;
  return static_cast<Byte*>(view.raw()) + element * static_cast<int64_t>(size_of(view.dtype()));
}

}  // namespace

void cuda::matmul(Stream& stream, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                  Transpose transpose_b, Accumulate accumulate, TensorView c) {
  const Product product{.m = c.dim(0),
                        .n = c.dim(1),
                        .k = a.dim(transpose_a == Transpose::yes ? 0 : 1),
                        .transpose_a = transpose_a,
                        .transpose_b = transpose_b,
                        .a = a.raw(),
                        .b = b.raw(),
                        .a_stride = a.dim(1),
                        .b_stride = b.dim(1),
                        .c = c.raw()};
  if (product.m == 0 || product.n == 0) return;
  if (product.k > 0) return multiply(stream, product, a.dtype(), c.dtype(), accumulate);
  if (accumulate == Accumulate::no) cuda::fill_zero(stream, c);
}

void cuda::grouped_linear_forward(Stream& stream, ConstTensorView x, ConstTensorView weight,
                                  std::span<const int64_t> row_offsets, TensorView y) {
  const int64_t out = weight.dim(1), in = weight.dim(2);
  const auto products = products_of(row_offsets, [&](int64_t e, int64_t first, int64_t rows) {
    return Product{.m = rows,
                   .n = out,
                   .k = in,
                   .transpose_a = Transpose::no,
                   .transpose_b = Transpose::yes,
                   .a = address(x, first * in),
                   .b = address(weight, e * out * in),
                   .a_stride = in,
                   .b_stride = in,
                   .c = address(y, first * out)};
  });
  multiply_all(stream, products, x.dtype(), y.dtype(), Accumulate::no);
}

void cuda::grouped_linear_backward_input(Stream& stream, ConstTensorView dy, ConstTensorView weight,
                                         std::span<const int64_t> row_offsets, TensorView dx) {
  const int64_t out = weight.dim(1), in = weight.dim(2);
  const auto products = products_of(row_offsets, [&](int64_t e, int64_t first, int64_t rows) {
    return Product{.m = rows,
                   .n = in,
                   .k = out,
                   .transpose_a = Transpose::no,
                   .transpose_b = Transpose::no,
                   .a = address(dy, first * out),
                   .b = address(weight, e * out * in),
                   .a_stride = out,
                   .b_stride = in,
                   .c = address(dx, first * in)};
  });
  multiply_all(stream, products, dy.dtype(), dx.dtype(), Accumulate::no);
}

void cuda::grouped_linear_backward_weight(Stream& stream, ConstTensorView dy, ConstTensorView x,
                                          std::span<const int64_t> row_offsets,
                                          Accumulate accumulate, TensorView dweight) {
  const int64_t out = dweight.dim(1), in = dweight.dim(2);
  const auto products = products_of(row_offsets, [&](int64_t e, int64_t first, int64_t rows) {
    return Product{.m = out,
                   .n = in,
                   .k = rows,
                   .transpose_a = Transpose::yes,
                   .transpose_b = Transpose::no,
                   .a = address(dy, first * out),
                   .b = address(x, first * in),
                   .a_stride = out,
                   .b_stride = in,
                   .c = address(dweight, e * out * in)};
  });
  for (int64_t e = 0; accumulate == Accumulate::no && e < dweight.dim(0); ++e) {
    const auto at = static_cast<size_t>(e);
    if (row_offsets[at] == row_offsets[at + 1]) cuda::fill_zero(stream, dweight.rows(e, 1));
  }
  multiply_all(stream, products, dy.dtype(), DType::f32, accumulate);
}

}  // namespace switchyard
