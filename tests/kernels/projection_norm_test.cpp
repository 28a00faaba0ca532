// The norm of all heads together against RMSNorm of rows, finite differences and the CPU's bodies;
// with the heads on one rank and on two.
#include "kernels/norm/projection_norm.h"

#include <gtest/gtest.h>

#include <tuple>
#include <vector>

#include "kernels/norm/rms_norm.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;
using test::Workspace;

constexpr float kEps = 0.1f;

// [1, heads, tokens, head_dim] -> [tokens, heads * head_dim]
std::vector<float> rows_of(const std::vector<float>& x, int64_t heads, int64_t head_dim) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / (heads * head_dim);
  std::vector<float> rows;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const auto from = x.begin() + (h * tokens + t) * head_dim;
      rows.insert(rows.end(), from, from + head_dim);
    }
  }
  return rows;
}

TEST(ProjectionNormTest, IsRmsNormOfTheTokensRows) {
  constexpr int64_t kHeads = 3, kTokens = 5, kDim = 6, kWidth = kHeads * kDim;
  Stream stream;
  const Tensor x = random_tensor({1, kHeads, kTokens, kDim}, 1),
               weight = random_tensor({kWidth}, 2);
  Tensor squares({kTokens}, DType::f32), y(x.shape(), DType::f32);
  const Tensor rows = make_tensor<float>({kTokens, kWidth}, rows_of(to_floats(x), kHeads, kDim));
  Tensor expected({kTokens, kWidth}, DType::f32), rstd({kTokens}, DType::f32);
  rms_norm_forward(stream, rows, {}, weight, kEps, {}, expected, rstd);

  projection_sums(stream, x, x, {}, squares);
  projection_norm_forward(stream, x, squares, weight, kWidth, kEps, y);

  EXPECT_LT(test::relative_error(rows_of(to_floats(y), kHeads, kDim), to_floats(expected)), 1e-6);
}

// Heads of two ranks, whose sums the test adds up.
TEST(ProjectionNormTest, GradientsOfSplitHeadsMatchFiniteDifferences) {
  constexpr int64_t kHeads = 2, kTokens = 3, kDim = 5, kWidth = 2 * kHeads * kDim;
  Stream stream;
  Workspace workspace;
  const Shape shape{1, kHeads, kTokens, kDim};
  std::vector<Tensor> x, dy, weight, y, dx, dweight;
  for (uint64_t rank = 0; rank < 2; ++rank) {
    x.push_back(random_tensor(shape, 1 + rank));
    dy.push_back(random_tensor(shape, 3 + rank));
    weight.push_back(random_tensor({kHeads * kDim}, 5 + rank));
    y.emplace_back(shape, DType::f32);
    dx.emplace_back(shape, DType::f32);
    dweight.emplace_back(Shape{kHeads * kDim}, DType::f32);
  }
  Tensor squares({kTokens}, DType::f32), dots({kTokens}, DType::f32), part({kTokens}, DType::f32);
  const auto sum = [&](const std::vector<Tensor>& a, bool weighted, Tensor& total) {
    std::vector<float> sums(kTokens);
    for (size_t rank = 0; rank < 2; ++rank) {
      projection_sums(stream, a[rank], x[rank], weighted ? weight[rank].view() : ConstTensorView(),
                      part);
      const std::vector<float> values = to_floats(part);
      for (size_t t = 0; t < sums.size(); ++t) sums[t] += values[t];
    }
    total = make_tensor<float>({kTokens}, sums);
  };
  const auto loss = [&] {
    sum(x, /*weighted=*/false, squares);
    double total = 0.0;
    for (size_t rank = 0; rank < 2; ++rank) {
      projection_norm_forward(stream, x[rank], squares, weight[rank], kWidth, kEps, y[rank]);
      total += test::inner_product(dy[rank], y[rank]);
    }
    return total;
  };

  loss();
  sum(dy, /*weighted=*/true, dots);
  for (size_t rank = 0; rank < 2; ++rank) {
    projection_norm_backward(stream, workspace, dy[rank], x[rank], squares, dots, weight[rank],
                             kWidth, kEps, dx[rank], dweight[rank]);
  }
  synchronize(test::device());  // before x and weight change

  for (size_t rank = 0; rank < 2; ++rank) {
    const auto numeric_x = test::numeric_gradient(x[rank], loss, 1e-2f);
    const auto numeric_weight = test::numeric_gradient(weight[rank], loss, 1e-2f);
    EXPECT_LT(test::relative_error(to_floats(dx[rank]), numeric_x), 2e-3);
    EXPECT_LT(test::relative_error(to_floats(dweight[rank]), numeric_weight), 2e-3);
  }
}

// Tokens, heads, head_dim, dtype.
class ProjectionNormAgreementTest
    : public testing::TestWithParam<std::tuple<int64_t, int64_t, int64_t, DType>> {};

TEST_P(ProjectionNormAgreementTest, BodiesGiveTheValuesOfTheCpu) {
  const auto [tokens, heads, head_dim, dtype] = GetParam();
  const double bound = dtype == DType::f32 ? 1e-5 : 1e-2;
  const Shape shape{2, heads, tokens, head_dim};
  const int64_t width = 2 * heads * head_dim;
  Stream stream;
  Workspace workspace;
  switchyard::Stream cpu_stream;
  switchyard::Workspace cpu_workspace;
  const Tensor x = random_tensor(shape, 1, dtype), dy = random_tensor(shape, 2, dtype);
  const Tensor weight = random_tensor({heads * head_dim}, 3);
  Tensor squares({2 * tokens}, DType::f32), cpu_squares({2 * tokens}, DType::f32);
  Tensor dots({2 * tokens}, DType::f32), cpu_dots({2 * tokens}, DType::f32);
  Tensor y(shape, dtype), cpu_y(shape, dtype), dx(shape, dtype), cpu_dx(shape, dtype);
  Tensor dweight = random_tensor({heads * head_dim}, 4);
  Tensor cpu_dweight = random_tensor({heads * head_dim}, 4);

  projection_sums(stream, x, x, {}, squares);
  projection_sums(stream, dy, x, weight, dots);
  projection_norm_forward(stream, x, squares, weight, width, kEps, y);
  projection_norm_backward(stream, workspace, dy, x, squares, dots, weight, width, kEps, dx,
                           dweight);
  synchronize(test::device());
  cpu::projection_sums(cpu_stream, x, x, {}, cpu_squares);
  cpu::projection_sums(cpu_stream, dy, x, weight, cpu_dots);
  cpu::projection_norm_forward(cpu_stream, x, cpu_squares, weight, width, kEps, cpu_y);
  cpu::projection_norm_backward(cpu_stream, cpu_workspace, dy, x, cpu_squares, cpu_dots, weight,
                                width, kEps, cpu_dx, cpu_dweight);

  EXPECT_LT(test::relative_error(to_floats(squares), to_floats(cpu_squares)), 1e-5);
  EXPECT_LT(test::relative_error(to_floats(dots), to_floats(cpu_dots)), 1e-5);
  EXPECT_LT(test::relative_error(to_floats(y), to_floats(cpu_y)), bound);
  EXPECT_LT(test::relative_error(to_floats(dx), to_floats(cpu_dx)), bound);
  EXPECT_LT(test::relative_error(to_floats(dweight), to_floats(cpu_dweight)), bound);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ProjectionNormAgreementTest,
                         testing::Combine(testing::Values(1, 33, 257), testing::Values(1, 3),
                                          testing::Values(1, 31, 64),
                                          testing::Values(DType::f32, DType::bf16)));

}  // namespace
}  // namespace switchyard
