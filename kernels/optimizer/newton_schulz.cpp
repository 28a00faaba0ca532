#include "kernels/optimizer/newton_schulz.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
// The value is that of Jordan's reference code; it prevents a division by zero.
constexpr double kEps = 1e-7;

void divide_by_own_norm(Stream& stream, Workspace& workspace, TensorView x) {
  WorkspaceScope scope(workspace);
  const TensorView sum = workspace.take({1}, DType::f64);
  fill_zero(stream, sum);
  add_sum_of_squares(stream, x, 1.0, sum);
  divide_by_norm(stream, sum, kEps, x);
}

// next = a x + (b g + c g^2) x with g = x x^T. A tall x is multiplied from the right with the
// smaller g = x^T x instead. g and polynomial are scratch.
void iterate(Stream& stream, ConstTensorView x, TensorView g, TensorView polynomial,
             TensorView next) {
  const bool is_tall = x.dim(0) > x.dim(1);
  const Transpose first = is_tall ? Transpose::yes : Transpose::no;
  const Transpose second = is_tall ? Transpose::no : Transpose::yes;
  matmul(stream, x, first, x, second, Accumulate::no, g);
  matmul(stream, g, Transpose::no, g, Transpose::no, Accumulate::no, polynomial);
  scale(stream, kC, polynomial);
  scale(stream, kB, g);
  add(stream, g, polynomial);
  copy(stream, x, next);
  scale(stream, kA, next);
  const ConstTensorView left = is_tall ? x : polynomial, right = is_tall ? polynomial : x;
  matmul(stream, left, Transpose::no, right, Transpose::no, Accumulate::yes, next);
}

}  // namespace

void newton_schulz(Stream& stream, Workspace& workspace, int steps, TensorView x) {
  require(x.rank() == 2, "x has shape {}, expected [rows, columns]", x.shape());
  require_dtype(x, DType::f32, "x");
  require(steps >= 1, "the iteration takes at least one step, not {}", steps);
  divide_by_own_norm(stream, workspace, x);
  WorkspaceScope scope(workspace);
  const int64_t k = std::min(x.dim(0), x.dim(1));
  const TensorView g = workspace.take({k, k}, DType::f32);
  const TensorView polynomial = workspace.take({k, k}, DType::f32);
  TensorView now = x, next = workspace.take(x.shape(), DType::f32);
  for (int i = 0; i < steps; ++i) {
    iterate(stream, now, g, polynomial, next);
    std::swap(now, next);
  }
  if (now.raw() != x.raw()) copy(stream, now, x);
}

void divide_by_norm(Stream& stream, ConstTensorView sum_of_squares, double eps, TensorView x) {
  require_shape(sum_of_squares, {1}, "sum_of_squares");
  require_dtype(sum_of_squares, DType::f64, "sum_of_squares");
  require_dtype(x, DType::f32, "x");
  SWITCHYARD_BODY(stream, divide_by_norm)(stream, sum_of_squares, eps, x);
}

namespace cpu {

void divide_by_norm(Stream&, ConstTensorView sum_of_squares, double eps, TensorView x) {
  const int64_t n = x.num_elements();
  const auto factor = static_cast<float>(1.0 / (std::sqrt(sum_of_squares.data<double>()[0]) + eps));
  float* values = x.data<float>();
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) values[i] *= factor;
}

}  // namespace cpu
}  // namespace switchyard
