#include "trainer/hashing/closed_forms.h"

#include <Eigen/Eigenvalues>
#include <Eigen/SVD>
#include <algorithm>
#include <cmath>

#include "kernels/linear/matmul.h"
#include "kernels/runtime/integers.h"
#include "trainer/hashing/levels.h"
#include "trainer/hashing/random_projection.h"

namespace switchyard {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<const RowMajor>;

// Enough for moments of 128 dimensions and for rotations; more rows change them by little.
constexpr int64_t kMostRows = 8192;
constexpr int kItqIterations = 30;
// A second moment's directions are not taken to be smaller than this share of their mean: the
// inverse of what a few rows happen to lack would be noise.
constexpr double kSmallestShare = 1e-4;

// Every nth row, at most kMostRows.
MatrixXd sample(const Rows& rows) {
  const Index step = ceil_div<Index>(rows.rows(), kMostRows);
  MatrixXd sampled(ceil_div(rows.rows(), step), rows.cols());
  for (Index i = 0; i < sampled.rows(); ++i) sampled.row(i) = rows.row(i * step).cast<double>();
  return sampled;
}

// [queries, head_dim]: keys are ranked by the sum of a group's scores, the score of its sum.
MatrixXd sums_of_groups(const HeadQueryKeys& head) {
  const Index queries = head.queries(), dim = head.head_dim();
  MatrixXd sums = MatrixXd::Zero(queries, dim);
  for (int64_t g = 0; g < head.group(); ++g) {
    sums += Rows(head.q.data<float>() + g * queries * dim, queries, dim).cast<double>();
  }
  return sums;
}

MatrixXd second_moment(const MatrixXd& rows) {
  const Index dim = rows.cols();
  const MatrixXd moment = rows.transpose() * rows / static_cast<double>(rows.rows());
  const double mean = std::max(moment.trace() / static_cast<double>(dim), 1e-30);
  return moment + kSmallestShare * mean * MatrixXd::Identity(dim, dim);
}

// A power of a symmetric positive definite matrix.
MatrixXd power(const MatrixXd& m, double exponent) {
  const Eigen::SelfAdjointEigenSolver<MatrixXd> solver(m);
  const Eigen::VectorXd values = solver.eigenvalues().array().max(1e-30).pow(exponent);
  return solver.eigenvectors() * values.asDiagonal() * solver.eigenvectors().transpose();
}

// The geometric mean M of the inverse of `q` and `k`: the one positive definite M with M q M = k.
MatrixXd geometric_mean_of_inverse(const MatrixXd& q, const MatrixXd& k) {
  const MatrixXd root = power(q, 0.5), inverse_root = power(q, -0.5);
  return inverse_root * power(root * k * root, 0.5) * inverse_root;
}

Tensor to_tensor(const MatrixXd& m) {
  Tensor tensor({m.rows(), m.cols()}, DType::f32);
  Eigen::Map<RowMajor>(tensor.data<float>(), m.rows(), m.cols()) = m.cast<float>();
  return tensor;
}

MatrixXd to_matrix(const Tensor& t) {
  return Rows(t.data<float>(), t.shape()[0], t.shape()[1]).cast<double>();
}

// Turns a frame with orthonormal rows so that the levels of the projected rows lie nearer to them
// (Gong et al. 2011, section 3.2, has rotations and signs: alternately B = sign(X R) and
// R = argmin ||B - X R||, a Procrustes problem).
//   rows           [n, dim] of length 1
//   start, result  [dim, columns], columns >= dim
MatrixXd iterative_quantization(const MatrixXd& rows, const MatrixXd& start, int64_t planes) {
  Stream stream;
  const Tensor x = to_tensor(rows);
  Tensor levels({rows.rows(), start.cols()}, DType::f32);
  Tensor product({rows.cols(), start.cols()}, DType::f32);
  MatrixXd rotation = start;
  for (int i = 0; i < kItqIterations; ++i) {
    matmul(stream, x, Transpose::no, to_tensor(rotation), Transpose::no, Accumulate::no, levels);
    round_to_levels(levels, planes, levels);
    matmul(stream, x, Transpose::yes, levels, Transpose::no, Accumulate::no, product);
    const Eigen::JacobiSVD<MatrixXd> svd(to_matrix(product),
                                         Eigen::ComputeThinU | Eigen::ComputeThinV);
    rotation = svd.matrixU() * svd.matrixV().transpose();
  }
  return rotation;
}

// [dim, columns]: rotations of the dim directions, or of the leading ones, side by side; or one
// tight frame where their number does not divide the columns, because a part of a rotation would
// weigh some directions more than others.
//   rows  [n, dim] the keys that the codes are of
MatrixXd frame(ClosedForm form, const MatrixXd& rows, RandomKey key, int64_t columns,
               int64_t planes) {
  const Index dim = rows.cols(), width = std::min<Index>(dim, columns);
  MatrixXd directions = MatrixXd::Identity(dim, dim);
  if (width < dim) {
    const Eigen::SelfAdjointEigenSolver<MatrixXd> solver(second_moment(rows));
    directions = solver.eigenvectors().rightCols(width);
  }
  const MatrixXd within = (rows * directions).rowwise().normalized();
  const int64_t step = columns % width == 0 ? width : columns;
  const double scale = std::sqrt(static_cast<double>(step) / static_cast<double>(width));
  MatrixXd result(dim, columns);
  for (int64_t first = 0, number = 0; first < columns; first += step, ++number) {
    const RandomKey own{key.seed, key.stream + static_cast<uint64_t>(number)};
    MatrixXd part =
        to_matrix(random_projection(HashInit::orthogonal, own, width, static_cast<int>(step)));
    if (form == ClosedForm::itq) part = iterative_quantization(within, part, planes);
    result.middleCols(first, step) = scale * directions * part;
  }
  return result;
}

}  // namespace

HashTensors closed_form(ClosedForm form, const HeadQueryKeys& head, RandomKey key, int64_t bits) {
  const int64_t dim = head.head_dim(), planes = num_key_planes(bits, dim), columns = bits / planes;
  MatrixXd k = sample(Rows(head.k.data<float>(), head.k.shape()[1], dim));
  const Eigen::RowVectorXd mean = k.colwise().mean();
  k.rowwise() -= mean;
  MatrixXd of_q = MatrixXd::Identity(dim, dim), of_k = of_q;  // A and its inverse
  if (form != ClosedForm::centred) {
    const MatrixXd m =
        geometric_mean_of_inverse(second_moment(sums_of_groups(head)), second_moment(k));
    of_q = power(m, 0.5);
    of_k = power(m, -0.5);
  }
  const MatrixXd r = frame(form, k * of_k, key, columns, planes);
  HashTensors result{.keys = Tensor({1, dim, columns}, DType::f32),
                     .queries = Tensor({1, dim, columns}, DType::f32),
                     .thresholds = Tensor({1, columns}, DType::f32),
                     .key_planes = planes};
  Eigen::Map<RowMajor>(result.keys.data<float>(), dim, columns) = (of_k * r).cast<float>();
  Eigen::Map<RowMajor>(result.queries.data<float>(), dim, columns) = (of_q * r).cast<float>();
  Eigen::Map<RowMajor>(result.thresholds.data<float>(), 1, columns) =
      (mean * of_k * r).cast<float>();
  return result;
}

}  // namespace switchyard
