#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace switchyard::test {

// Row-major, in double.
struct Matrix {
  int64_t rows, columns;
  std::vector<double> values;
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * columns + j)]; }
};

inline Matrix transposed(const Matrix& x) {
  Matrix y{x.columns, x.rows, {}};
  for (int64_t j = 0; j < x.columns; ++j) {
    for (int64_t i = 0; i < x.rows; ++i) y.values.push_back(x.at(i, j));
  }
  return y;
}

inline Matrix product(const Matrix& a, const Matrix& b) {
  Matrix c{a.rows, b.columns, std::vector<double>(static_cast<size_t>(a.rows * b.columns))};
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.columns; ++k) {
      for (int64_t j = 0; j < b.columns; ++j) {
        c.values[static_cast<size_t>(i * c.columns + j)] += a.at(i, k) * b.at(k, j);
      }
    }
  }
  return c;
}

inline double frobenius_norm(const Matrix& x) {
  double squares = 0.0;
  for (const double v : x.values) squares += v * v;
  return std::sqrt(squares);
}

// Liu et al. 2025, equation 2, term by term and always from the left.
inline Matrix newton_schulz_reference(Matrix x, int steps) {
  const double norm = frobenius_norm(x) + 1e-7;
  for (double& v : x.values) v /= norm;
  for (int step = 0; step < steps; ++step) {
    const Matrix gram = product(x, transposed(x));
    const Matrix cubic = product(gram, x), quintic = product(gram, cubic);
    for (size_t i = 0; i < x.values.size(); ++i) {
      x.values[i] = 3.4445 * x.values[i] - 4.7750 * cubic.values[i] + 2.0315 * quintic.values[i];
    }
  }
  return x;
}

}  // namespace switchyard::test
