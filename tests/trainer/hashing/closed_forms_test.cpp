#include "trainer/hashing/closed_forms.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>

#include "tests/trainer/hashing/head_samples.h"
#include "trainer/hashing/random_projection.h"

namespace switchyard {
namespace {

using Eigen::MatrixXd;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

MatrixXd matrix(const float* values, int64_t rows, int64_t columns) {
  return Eigen::Map<const RowMajor>(values, rows, columns).cast<double>();
}
MatrixXd matrix(const switchyard::Tensor& stack) {
  const Shape& shape = stack.shape();
  return matrix(stack.data<float>(), shape.num_elements() / shape[shape.rank() - 1],
                shape[shape.rank() - 1]);
}

class ClosedFormTest : public testing::TestWithParam<ClosedForm> {
 protected:
  static constexpr int64_t kDim = 16, kRows = 3000;

  HashTensors form(int64_t bits) const { return closed_form(GetParam(), head_, {3, 4}, bits); }

  MatrixXd sums() const {
    return matrix(head_.q.data<float>(), 400, kDim) +
           matrix(head_.q.data<float>() + 400 * kDim, 400, kDim);
  }
  MatrixXd keys() const { return matrix(head_.k.data<float>(), kRows, kDim); }
  MatrixXd centred() const { return keys().rowwise() - keys().colwise().mean(); }

  // Two query heads, 400 queries.
  HeadQueryKeys head_ =
      test::sample_head(2, 1, kRows, kDim, std::vector<KeyRange>(400, KeyRange{0, kRows}));
};

// W' and W are inverse to each other up to a tight frame: y.x = columns / head_dim q.(k - m). Heads
// of 16 have rotations side by side with 64 bits, two of each of 32 columns, but not with 24 or 40.
TEST_P(ClosedFormTest, ProjectionsKeepProducts) {
  for (const auto& [bits, columns] : {std::pair(64, 32), std::pair(24, 24), std::pair(40, 40)}) {
    SCOPED_TRACE(bits);
    const HashTensors hash = form(bits);
    ASSERT_EQ(hash.keys.shape()[2], columns);

    const MatrixXd y = sums().topRows(20) * matrix(hash.queries);
    const MatrixXd x = (keys() * matrix(hash.keys)).rowwise() - matrix(hash.thresholds).row(0);
    const MatrixXd expected = columns / 16.0 * sums().topRows(20) * centred().transpose();
    EXPECT_LT((y * x.transpose() - expected).norm(), 1e-4 * expected.norm());
  }
}

TEST_P(ClosedFormTest, ThresholdsAreTheProjectedMean) {
  const HashTensors hash = form(kDim);

  const MatrixXd mean = keys().colwise().mean() * matrix(hash.keys);
  EXPECT_LT((mean - matrix(hash.thresholds)).norm(), 1e-4 * mean.norm());
}

TEST_P(ClosedFormTest, BalancedFormsGiveQueriesAndKeysTheSameSecondMoment) {
  const HashTensors hash = form(kDim);

  const MatrixXd y = sums() * matrix(hash.queries), x = centred() * matrix(hash.keys);
  const MatrixXd of_y = y.transpose() * y / static_cast<double>(y.rows());
  const MatrixXd of_x = x.transpose() * x / static_cast<double>(x.rows());
  const double difference = (of_y - of_x).norm() / of_x.norm();
  if (GetParam() == ClosedForm::centred) {
    EXPECT_GT(difference, 1.0);
  } else {
    EXPECT_LT(difference, 0.01);  // the floor of small directions
  }
}

// With fewer bits than the head is wide the codes are of the directions that matter most.
TEST_P(ClosedFormTest, FewBitsKeepTheLargestDirections) {
  const HashTensors hash = closed_form(GetParam(), head_, {3, 4}, 8);

  const MatrixXd x = centred() * matrix(hash.keys);
  const HashTensors all = form(kDim);
  const MatrixXd whole = centred() * matrix(all.keys);
  const Eigen::SelfAdjointEigenSolver<MatrixXd> solver(whole.transpose() * whole);
  EXPECT_NEAR(x.squaredNorm(), solver.eigenvalues().tail(8).sum(), 0.01 * x.squaredNorm());
}

INSTANTIATE_TEST_SUITE_P(All, ClosedFormTest,
                         testing::Values(ClosedForm::centred, ClosedForm::balanced,
                                         ClosedForm::itq));

// Keys near to the corners of a cube that is turned against the axes: iterative quantization finds
// the cube. The measure is the mean cosine between projected keys and their signs.
TEST(ClosedForms, IterativeQuantizationFindsTheCubeOfTheKeys) {
  constexpr int64_t kDim = 8, kRows = 2000;
  HeadQueryKeys head =
      test::sample_head(1, 1, kRows, kDim, std::vector<KeyRange>(400, KeyRange{0, kRows}));
  const MatrixXd turn = matrix(random_projection(HashInit::orthogonal, {9, 9}, kDim, kDim));
  const auto normal = [](Shape shape, uint64_t seed) {
    return matrix(test::random_tensor(shape, seed));
  };
  const MatrixXd corners = normal({kRows, kDim}, 1).cwiseSign() + 0.1 * normal({kRows, kDim}, 2);
  const MatrixXd keys = (corners * turn).array() + 2.0, queries = normal({400, kDim}, 3);
  Eigen::Map<RowMajor>(head.k.data<float>(), kRows, kDim) = keys.cast<float>();
  Eigen::Map<RowMajor>(head.q.data<float>(), 400, kDim) = queries.cast<float>();
  const auto cosine = [&](ClosedForm form) {
    const HashTensors hash = closed_form(form, head, {3, 4}, kDim);
    MatrixXd x = keys * matrix(hash.keys);
    x.rowwise() -= matrix(hash.thresholds).row(0);
    const Eigen::ArrayXd sums = x.cwiseAbs().rowwise().sum();
    return (sums / x.rowwise().norm().array() / std::sqrt(double{kDim})).mean();
  };

  EXPECT_LT(cosine(ClosedForm::balanced), 0.85);
  EXPECT_GT(cosine(ClosedForm::itq), 0.97);
}

// With two planes it ends where the rotation is the best one for the four levels that the rotated
// keys have: then the product of both is symmetric (the Procrustes problem's solution).
TEST(ClosedForms, IterativeQuantizationEndsAtTheBestRotationForTheLevels) {
  constexpr int64_t kDim = 32, kRows = 2000;
  HeadQueryKeys head =
      test::sample_head(1, 1, kRows, kDim, std::vector<KeyRange>(400, KeyRange{0, kRows}));
  const auto asymmetry = [&](ClosedForm form) {
    const HashTensors hash = closed_form(form, head, {3, 4}, 2 * kDim);
    EXPECT_EQ(hash.key_planes, 2);
    MatrixXd x = matrix(head.k.data<float>(), kRows, kDim) * matrix(hash.keys);
    x.rowwise() -= matrix(hash.thresholds).row(0);
    x.rowwise().normalize();
    const MatrixXd levels = x.unaryExpr([&](double value) {
      const double step = 0.9957 / std::sqrt(double{kDim});
      return std::min(std::max(std::floor(value / step), -2.0), 1.0) + 0.5;
    });
    const MatrixXd product = x.transpose() * levels;
    return (product - product.transpose()).norm() / product.norm();
  };

  // For signs, as with one plane, it would end at 0.05.
  EXPECT_GT(asymmetry(ClosedForm::balanced), 0.05);
  EXPECT_LT(asymmetry(ClosedForm::itq), 0.025);
}

}  // namespace
}  // namespace switchyard
