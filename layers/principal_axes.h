#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

// Principal component analysis of few dimensions, in double, by Jacobi's rotations.
//   rows    [n, dim] row-major, n at least 1
//   result  [dim, count] row-major: as its columns the orthonormal eigenvectors of the covariance
//   of
//           the rows, those of the greatest eigenvalues first; each one's element of greatest
//           magnitude is positive
std::vector<double> principal_axes(std::span<const float> rows, int64_t dim, int64_t count);

}  // namespace switchyard
