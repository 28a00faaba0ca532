#include "layers/decoding/principal_axes.h"

#include <Eigen/Eigenvalues>
#include <algorithm>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The lower triangle of the covariance times the number of rows, which has the same eigenvectors.
Eigen::MatrixXd scatter_of(const Eigen::Map<const RowMajor<float>>& rows) {
  constexpr Eigen::Index kBlockRows = 256;  // widened to double at a time
  const Eigen::RowVectorXd mean = rows.cast<double>().colwise().mean();
  Eigen::MatrixXd scatter = Eigen::MatrixXd::Zero(rows.cols(), rows.cols());
  for (Eigen::Index begin = 0; begin < rows.rows(); begin += kBlockRows) {
    const Eigen::Index count = std::min(kBlockRows, rows.rows() - begin);
    const Eigen::MatrixXd centred = rows.middleRows(begin, count).cast<double>().rowwise() - mean;
    scatter.selfadjointView<Eigen::Lower>().rankUpdate(centred.transpose());
  }
  return scatter;
}

// An eigenvector and its negative are equally good; this sign makes the choice unique.
double chosen_sign(const Eigen::VectorXd& axis) {
  Eigen::Index greatest = 0;
  axis.cwiseAbs().maxCoeff(&greatest);
  return axis[greatest] < 0.0 ? -1.0 : 1.0;
}

}  // namespace

std::vector<double> principal_axes(std::span<const float> rows, int64_t dim, int64_t count) {
  require(dim >= 1 && !rows.empty() && rows.size() % static_cast<size_t>(dim) == 0,
          "{} values cannot be split into rows of {}", rows.size(), dim);
  require(count >= 1 && count <= dim,
          "{} principal axes were requested, but the number must be 1 to {}", count, dim);
  const auto n = static_cast<Eigen::Index>(rows.size()) / dim;
  const Eigen::Map<const RowMajor<float>> all(rows.data(), n, dim);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(scatter_of(all));

  std::vector<double> result(static_cast<size_t>(dim * count));
  Eigen::Map<RowMajor<double>> axes(result.data(), dim, count);
  for (int64_t c = 0; c < count; ++c) {
    const Eigen::VectorXd axis = solver.eigenvectors().col(dim - 1 - c);  // ascending eigenvalues
    axes.col(c) = chosen_sign(axis) * axis;
  }
  return result;
}

}  // namespace switchyard
