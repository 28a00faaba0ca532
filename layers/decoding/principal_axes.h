#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

// Principal component analysis of few dimensions, in double.
//   rows    [n, dim] row-major, n at least 1
//   result  [dim, count] row-major: as its columns the orthonormal eigenvectors of the rows'
//           covariance, those of the greatest eigenvalues first; each one's element of greatest
//           magnitude is positive
// Throws Error unless `rows` can be split into rows of dim values and count is 1 to dim.
std::vector<double> principal_axes(std::span<const float> rows, int64_t dim, int64_t count);

}  // namespace switchyard
