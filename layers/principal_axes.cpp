#include "layers/principal_axes.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// Square, row-major.
struct Matrix {
  explicit Matrix(int64_t size) : dim(size), values(static_cast<size_t>(size * size)) {}

  double& at(int64_t row, int64_t column) {
    return values[static_cast<size_t>(row * dim + column)];
  }

  int64_t dim;
  std::vector<double> values;
};

Matrix covariance_of(std::span<const float> rows, int64_t dim) {
  const auto n = static_cast<int64_t>(rows.size()) / dim;
  std::vector<double> mean(static_cast<size_t>(dim));
  for (size_t i = 0; i < rows.size(); ++i) {
    mean[i % static_cast<size_t>(dim)] += rows[i] / static_cast<double>(n);
  }
  Matrix covariance(dim);
  std::vector<double> centred(static_cast<size_t>(dim));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < dim; ++i) {
      centred[static_cast<size_t>(i)] =
          rows[static_cast<size_t>(row * dim + i)] - mean[static_cast<size_t>(i)];
    }
    for (int64_t i = 0; i < dim; ++i) {
      const double x = centred[static_cast<size_t>(i)];
      for (int64_t j = 0; j < dim; ++j) covariance.at(i, j) += x * centred[static_cast<size_t>(j)];
    }
  }
  return covariance;
}

// Of the symmetric matrix: makes element (p, q) zero by a rotation of the two axes, and turns the
// columns of `axes` with it (Golub and Van Loan 2013, algorithm 8.5.1).
void rotate(Matrix& symmetric, Matrix& axes, int64_t p, int64_t q) {
  const double off = symmetric.at(p, q);
  if (off == 0.0) return;
  const double tau = (symmetric.at(q, q) - symmetric.at(p, p)) / (2.0 * off);
  const double t = std::copysign(1.0, tau) / (std::abs(tau) + std::hypot(1.0, tau));
  const double c = 1.0 / std::hypot(1.0, t), s = t * c;
  const auto turn = [&](double& x, double& y) {
    const double kept = x;
    x = c * kept - s * y;
    y = s * kept + c * y;
  };
  for (int64_t i = 0; i < symmetric.dim; ++i) turn(symmetric.at(p, i), symmetric.at(q, i));
  for (int64_t i = 0; i < symmetric.dim; ++i) turn(symmetric.at(i, p), symmetric.at(i, q));
  for (int64_t i = 0; i < symmetric.dim; ++i) turn(axes.at(i, p), axes.at(i, q));
}

double off_diagonal(Matrix& m) {
  double sum = 0.0;
  for (int64_t i = 0; i < m.dim; ++i) {
    for (int64_t j = 0; j < m.dim; ++j) sum += i == j ? 0.0 : m.at(i, j) * m.at(i, j);
  }
  return sum;
}

// Leaves the eigenvalues on the diagonal; returns the eigenvectors as columns.
Matrix diagonalize(Matrix& symmetric) {
  Matrix axes(symmetric.dim);
  for (int64_t i = 0; i < axes.dim; ++i) axes.at(i, i) = 1.0;
  const double square = std::inner_product(symmetric.values.begin(), symmetric.values.end(),
                                           symmetric.values.begin(), 0.0);
  // Convergence is quadratic in the end: more sweeps than this are never needed.
  for (int sweep = 0; sweep < 50 && off_diagonal(symmetric) > 1e-24 * square; ++sweep) {
    for (int64_t p = 0; p < axes.dim; ++p) {
      for (int64_t q = p + 1; q < axes.dim; ++q) rotate(symmetric, axes, p, q);
    }
  }
  return axes;
}

// An eigenvector and its negative are as good: one of them is chosen.
double sign_of_column(Matrix& axes, int64_t column) {
  double greatest = 0.0;
  for (int64_t i = 0; i < axes.dim; ++i) {
    if (std::abs(axes.at(i, column)) > std::abs(greatest)) greatest = axes.at(i, column);
  }
  return greatest < 0.0 ? -1.0 : 1.0;
}

}  // namespace

std::vector<double> principal_axes(std::span<const float> rows, int64_t dim, int64_t count) {
  require(dim >= 1 && !rows.empty() && rows.size() % static_cast<size_t>(dim) == 0,
          "{} values are no rows of {}", rows.size(), dim);
  require(count >= 1 && count <= dim, "{} principal axes are asked for of {} dimensions", count,
          dim);
  Matrix covariance = covariance_of(rows, dim);
  Matrix axes = diagonalize(covariance);
  std::vector<int64_t> order(static_cast<size_t>(dim));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::ranges::stable_sort(
      order, [&](int64_t a, int64_t b) { return covariance.at(a, a) > covariance.at(b, b); });

  std::vector<double> result(static_cast<size_t>(dim * count));
  for (int64_t c = 0; c < count; ++c) {
    const int64_t column = order[static_cast<size_t>(c)];
    const double sign = sign_of_column(axes, column);
    for (int64_t i = 0; i < dim; ++i) {
      result[static_cast<size_t>(i * count + c)] = sign * axes.at(i, column);
    }
  }
  return result;
}

}  // namespace switchyard
