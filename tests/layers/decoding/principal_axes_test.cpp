#include "layers/decoding/principal_axes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// Rows whose variance along axis i of a rotated frame is (dim - i)^2, far from the origin.
std::vector<float> stretched_rows(int64_t n, int64_t dim) {
  std::mt19937 engine(5);
  std::normal_distribution<float> normal;
  std::vector<float> rows;
  for (int64_t row = 0; row < n; ++row) {
    std::vector<float> x;
    for (int64_t i = 0; i < dim; ++i) x.push_back(static_cast<float>(dim - i) * normal(engine));
    // Rotates by a quarter of a right angle in the plane of each pair of neighbouring axes.
    for (size_t i = 0; i + 1 < x.size(); i += 2) {
      const float a = x[i], b = x[i + 1], c = std::cos(0.4f), s = std::sin(0.4f);
      x[i] = c * a - s * b;
      x[i + 1] = s * a + c * b;
    }
    for (const float value : x) rows.push_back(100.0f + value);
  }
  return rows;
}

double column_dot(const std::vector<double>& m, int64_t count, int64_t a, int64_t b) {
  double sum = 0.0;
  for (size_t row = 0; row < m.size() / static_cast<size_t>(count); ++row) {
    const size_t begin = row * static_cast<size_t>(count);
    sum += m[begin + static_cast<size_t>(a)] * m[begin + static_cast<size_t>(b)];
  }
  return sum;
}

TEST(PrincipalAxes, AreOrthonormal) {
  for (const int64_t dim : {1, 2, 31, 64}) {
    const std::vector<double> axes = principal_axes(stretched_rows(200, dim), dim, dim);

    for (int64_t a = 0; a < dim; ++a) {
      for (int64_t b = 0; b < dim; ++b) {
        EXPECT_NEAR(column_dot(axes, dim, a, b), a == b ? 1.0 : 0.0, 1e-12);
      }
    }
  }
}

TEST(PrincipalAxes, MakeTheCovarianceDiagonalAndFalling) {
  constexpr int64_t kDim = 8, kRows = 500;
  const std::vector<float> rows = stretched_rows(kRows, kDim);

  const std::vector<double> axes = principal_axes(rows, kDim, kDim);

  std::vector<double> mean(kDim), projected;
  for (size_t i = 0; i < rows.size(); ++i) mean[i % kDim] += rows[i] / double{kRows};
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t c = 0; c < kDim; ++c) {
      double sum = 0.0;
      for (size_t i = 0; i < kDim; ++i) {
        sum += (rows[row * kDim + i] - mean[i]) * axes[i * kDim + c];
      }
      projected.push_back(sum);
    }
  }
  std::vector<double> variances;
  for (int64_t a = 0; a < kDim; ++a) {
    variances.push_back(column_dot(projected, kDim, a, a));
    for (int64_t b = 0; b < a; ++b) {
      EXPECT_NEAR(column_dot(projected, kDim, a, b) / variances[0], 0.0, 1e-10);
    }
  }
  EXPECT_TRUE(std::is_sorted(variances.rbegin(), variances.rend()));
  EXPECT_GT(variances.front(), 10.0 * variances.back());
}

TEST(PrincipalAxes, FewerAreTheFirstOnes) {
  const std::vector<float> rows = stretched_rows(100, 6);

  const std::vector<double> all = principal_axes(rows, 6, 6), two = principal_axes(rows, 6, 2);

  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(two[2 * i], all[6 * i]);
    EXPECT_EQ(two[2 * i + 1], all[6 * i + 1]);
  }
}

TEST(PrincipalAxes, TheGreatestElementOfEachIsPositive) {
  constexpr size_t kDim = 31;
  const std::vector<double> axes = principal_axes(stretched_rows(200, kDim), kDim, kDim);

  for (size_t axis = 0; axis < kDim; ++axis) {
    double greatest = 0.0;
    for (size_t i = 0; i < kDim; ++i) {
      const double element = axes[i * kDim + axis];
      if (std::abs(element) > std::abs(greatest)) greatest = element;
    }
    EXPECT_GT(greatest, 0.0) << "axis " << axis;
  }
}

TEST(PrincipalAxes, OfOneRowAreStillOrthonormal) {
  const std::vector<float> row = {1.0f, 2.0f, 3.0f};

  const std::vector<double> axes = principal_axes(row, 3, 2);

  EXPECT_NEAR(column_dot(axes, 2, 0, 0), 1.0, 1e-12);
  EXPECT_NEAR(column_dot(axes, 2, 0, 1), 0.0, 1e-12);
}

TEST(PrincipalAxes, RejectsMoreAxesThanDimensions) {
  const std::vector<float> rows = {1.0f, 2.0f};

  EXPECT_THAT([&] { principal_axes(rows, 2, 3); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("3 principal axes")));
}

}  // namespace
}  // namespace switchyard
