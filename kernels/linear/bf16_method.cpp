#include "kernels/linear/bf16_method.h"

#include <algorithm>
#include <chrono>

#include "kernels/cpu/onednn_matmul.h"
#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

using Seconds = MethodSeconds<Bf16Method>;

// The measured products: blocks of the forward pass, of the gradients of inputs and of weights, and
// attention's scores.
struct MeasuredProduct {
  int64_t m, n, k;
  Transpose transpose_a, transpose_b;
  DType c_dtype;
};
constexpr MeasuredProduct kMeasured[] = {
    {256, 512, 512, Transpose::no, Transpose::yes, DType::bf16},
    {256, 512, 256, Transpose::no, Transpose::no, DType::bf16},
    {256, 512, 512, Transpose::yes, Transpose::no, DType::f32},
    {256, 128, 64, Transpose::no, Transpose::no, DType::f32},
};

// Pages that nobody has written share their memory, and would be read too fast.
Tensor ones(int64_t rows, int64_t cols) {
  Tensor x({rows, cols}, DType::bf16);
  std::fill_n(x.data<bfloat16>(), rows * cols, bfloat16(1.0f));
  return x;
}

double seconds_of(void (*compute)(const MatrixProduct&), const MatrixProduct& product) {
  const auto begin = std::chrono::steady_clock::now();
  compute(product);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Adds the best of several alternated tries, since other programs can only make a try slower.
void add_seconds(const MeasuredProduct& shape, Seconds& sums) {
  constexpr int kTries = 6;
  const bool ta = shape.transpose_a == Transpose::yes, tb = shape.transpose_b == Transpose::yes;
  const Tensor a = ones(ta ? shape.k : shape.m, ta ? shape.m : shape.k);
  const Tensor b = ones(tb ? shape.n : shape.k, tb ? shape.k : shape.n);
  Tensor c({shape.m, shape.n}, shape.c_dtype);
  const MatrixProduct product{.m = shape.m,
                              .n = shape.n,
                              .k = shape.k,
                              .dtype = DType::bf16,
                              .a = {a.view().raw(), a.view().dim(1), shape.transpose_a},
                              .b = {b.view().raw(), b.view().dim(1), shape.transpose_b},
                              .c = c.view().raw(),
                              .c_stride = shape.n,
                              .c_dtype = shape.c_dtype};
  double native = Seconds::kNever, widened = Seconds::kNever;
  for (int i = 0; i < kTries; ++i) {
    native = std::min(native, seconds_of(&compute_block_native_bf16, product));
    widened = std::min(widened, seconds_of(&compute_block_widened_bf16, product));
  }
  sums[Bf16Method::native] += native;
  sums[Bf16Method::widened] += widened;
}

ChosenMethod<Bf16Method> chosen;

}  // namespace

Seconds measure_bf16_methods() {
  if (!has_native_bf16()) return Seconds::only(Bf16Method::widened);
  Seconds sums;
  for (const MeasuredProduct& shape : kMeasured) add_seconds(shape, sums);
  return sums;
}

Bf16Method bf16_method() {
  if (const std::optional<Bf16Method> set = chosen.get()) return *set;
  static const Bf16Method measured = measure_bf16_methods().fastest();
  return measured;
}

void set_bf16_method(Bf16Method method) {
  require(method == Bf16Method::widened || has_native_bf16(),
          "this processor has no products of bf16");
  chosen.set(method);
}

}  // namespace switchyard
