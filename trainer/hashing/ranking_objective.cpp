#include "trainer/hashing/ranking_objective.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>

#include "kernels/basic/soft_sign.h"
#include "kernels/basic/softmax.h"
#include "kernels/linear/matmul.h"

namespace switchyard {
namespace {

// Columns of [rows, columns], so that threads share them without sharing sums.
constexpr int64_t kPiece = 16;

std::span<float> values_of(Tensor& t) {
  return {t.data<float>(), static_cast<size_t>(t.num_elements())};
}

ConstTensorView matrix(const Tensor& stack) {
  return stack.view().reshape({stack.shape()[1], stack.shape()[2]});
}
TensorView matrix(Tensor& stack) {
  return stack.view().reshape({stack.shape()[1], stack.shape()[2]});
}

// The factor with which z is an estimate of the mean over the group of q.k / sqrt(head_dim), if W
// is a tight frame and x as likely of one direction as of another: then sum over j of y_j sign(x_j)
// is about sqrt(pi / 2) sqrt(bits) y.x / |x|, and y.x = bits / head_dim q.k.
double tight_frame_scale(int64_t group, int64_t head_dim, int64_t bits) {
  const auto b = static_cast<double>(bits), d = static_cast<double>(head_dim);
  return std::sqrt(2.0 / std::numbers::pi / b) * (d / b) /
         (static_cast<double>(group) * std::sqrt(d));
}

// sums[j] = sum over rows of x[r, j], in double and in the order of rows.
void sum_rows(ConstTensorView x, float factor, std::span<float> sums) {
  const int64_t rows = x.dim(0), columns = x.dim(1);
  const float* values = x.data<float>();
#pragma omp parallel for
  for (int64_t first = 0; first < columns; first += kPiece) {
    const int64_t count = std::min(kPiece, columns - first);
    double sum[kPiece] = {};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < count; ++j) sum[j] += values[r * columns + first + j];
    }
    for (int64_t j = 0; j < count; ++j) {
      sums[static_cast<size_t>(first + j)] = factor * static_cast<float>(sum[j]);
    }
  }
}

}  // namespace

// One sequence's queries and keys, and what the backward pass needs.
struct RankingObjective::Pass {
  int64_t first_query, first_row, queries, keys;
  float scale = 0.0f;
  ConstTensorView k;           // [keys, head_dim]
  std::vector<KeyRange> seen;  // [queries] among these keys
  Tensor q_sum;                // [queries, head_dim]
  Tensor y;                    // [queries, bits]
  Tensor x;                    // [keys, bits]
  Tensor signs;                // [keys, bits] of x
  Tensor lengths;              // [keys] of x
  Tensor products;             // [queries, keys]: y signs'
  Tensor dz;                   // [queries, keys]: the gradient of z
};

RankingParameters RankingParameters::zeros(int64_t head_dim, int64_t bits) {
  return {.hash = {.keys = Tensor({1, head_dim, bits}, DType::f32),
                   .queries = Tensor({1, head_dim, bits}, DType::f32),
                   .thresholds = Tensor({1, bits}, DType::f32)},
          .log_scale = Tensor({1}, DType::f32)};
}

RankingObjective::RankingObjective(const HeadQueryKeys& head, int64_t queries_per_sequence,
                                   const HashTensors& start)
    : head_(head), per_sequence_(queries_per_sequence) {
  // sqrt of the mean variance of a column of k W: the diagonal of W' C W, C the keys' covariance,
  // taken here from the projected keys themselves.
  const int64_t rows = head.k.shape()[1], bits = start.keys.shape()[2];
  Tensor x({rows, bits}, DType::f32);
  Stream stream;
  matmul(stream, head.k.view().reshape({rows, head.head_dim()}), Transpose::no, matrix(start.keys),
         Transpose::no, Accumulate::no, x);
  std::vector<float> means(static_cast<size_t>(bits));
  sum_rows(x, 1.0f / static_cast<float>(rows), means);
  double squares = 0.0;
  const float* values = x.data<float>();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < bits; ++j) {
      const double centred = values[r * bits + j] - means[static_cast<size_t>(j)];
      squares += centred * centred;
    }
  }
  const double variance = squares / static_cast<double>(rows * bits);
  if (variance > 0.0) width_ = static_cast<float>(std::sqrt(variance));
}

double RankingObjective::gradient(const RankingParameters& at, int64_t sequence,
                                  RankingParameters* gradient) const {
  Pass pass{.first_query = sequence * per_sequence_,
            .first_row = 0,
            .queries = per_sequence_,
            .keys = 0,
            .k = {},
            .seen = {},
            .q_sum = {},
            .y = {},
            .x = {},
            .signs = {},
            .lengths = {},
            .products = {},
            .dz = {}};
  const auto first = head_.visible.begin() + pass.first_query;
  pass.seen.assign(first, first + per_sequence_);
  pass.first_row = pass.seen.front().begin;
  pass.keys = pass.seen.back().end - pass.first_row;
  for (KeyRange& range : pass.seen) {
    range.begin -= pass.first_row;
    range.end -= pass.first_row;
  }
  pass.k = head_.k.view()
               .reshape({head_.k.shape()[1], head_.head_dim()})
               .rows(pass.first_row, pass.keys);
  forward(at, pass);
  const double loss = add_loss(pass, gradient != nullptr);
  if (gradient) backward(at, pass, *gradient);
  return loss;
}

void RankingObjective::forward(const RankingParameters& at, Pass& pass) const {
  const int64_t head_dim = head_.head_dim(), bits = at.hash.keys.shape()[2];
  Stream stream;
  pass.scale = static_cast<float>(tight_frame_scale(head_.group(), head_dim, bits)) *
               std::exp(at.log_scale.data<float>()[0]);
  pass.q_sum = Tensor({pass.queries, head_dim}, DType::f32);
  for (int64_t g = 0; g < head_.group(); ++g) {
    const float* q = head_.q.data<float>() + (g * head_.queries() + pass.first_query) * head_dim;
    for (int64_t i = 0; i < pass.queries * head_dim; ++i) pass.q_sum.data<float>()[i] += q[i];
  }
  pass.y = Tensor({pass.queries, bits}, DType::f32);
  matmul(stream, pass.q_sum, Transpose::no, matrix(at.hash.queries), Transpose::no, Accumulate::no,
         pass.y);
  pass.x = Tensor({pass.keys, bits}, DType::f32);
  matmul(stream, pass.k, Transpose::no, matrix(at.hash.keys), Transpose::no, Accumulate::no,
         pass.x);
  pass.signs = Tensor({pass.keys, bits}, DType::f32);
  pass.lengths = Tensor({pass.keys}, DType::f32);
  const float* thresholds = at.hash.thresholds.data<float>();
#pragma omp parallel for
  for (int64_t i = 0; i < pass.keys; ++i) {
    float* x = pass.x.data<float>() + i * bits;
    float* signs = pass.signs.data<float>() + i * bits;
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < bits; ++j) {
      x[j] -= thresholds[j];
      signs[j] = x[j] > 0.0f ? 1.0f : -1.0f;
      squares += x[j] * x[j];
    }
    pass.lengths.data<float>()[i] = std::sqrt(squares);
  }
  pass.products = Tensor({pass.queries, pass.keys}, DType::f32);
  matmul(stream, pass.y, Transpose::no, pass.signs, Transpose::yes, Accumulate::no, pass.products);
}

// p of all queries; keys that a query does not see have any value.
//   result  [queries, keys]
Tensor RankingObjective::true_attention(const Pass& pass) const {
  const int64_t head_dim = head_.head_dim(), group = head_.group();
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  const ConstTensorView q = head_.q.view().reshape({group * head_.queries(), head_dim});
  Tensor p({pass.queries, pass.keys}, DType::f32), scores(p.shape(), DType::f32);
  Stream stream;
  for (int64_t g = 0; g < group; ++g) {
    matmul(stream, q.rows(g * head_.queries() + pass.first_query, pass.queries), Transpose::no,
           pass.k, Transpose::yes, Accumulate::no, scores);
#pragma omp parallel for
    for (int64_t query = 0; query < pass.queries; ++query) {
      const KeyRange seen = pass.seen[static_cast<size_t>(query)];
      const int64_t first = query * pass.keys + seen.begin;
      float *of_head = scores.data<float>() + first, *mean = p.data<float>() + first;
      softmax(scale, {of_head, static_cast<size_t>(seen.size())});
      for (int64_t i = 0; i < seen.size(); ++i) {
        mean[i] += of_head[i] / static_cast<float>(group);
      }
    }
  }
  return p;
}

// The mean loss of the queries. With the gradient, dz becomes (softmax(z) - p) / queries.
double RankingObjective::add_loss(Pass& pass, bool with_gradient) const {
  const Tensor attention = true_attention(pass);
  pass.dz = Tensor({pass.queries, pass.keys}, DType::f32);
  std::vector<double> losses(static_cast<size_t>(pass.queries));
  const float share = 1.0f / static_cast<float>(pass.queries);
#pragma omp parallel for
  for (int64_t q = 0; q < pass.queries; ++q) {
    const KeyRange seen = pass.seen[static_cast<size_t>(q)];
    const int64_t first = q * pass.keys + seen.begin;
    const float* p = attention.data<float>() + first;
    const float* products = pass.products.data<float>() + first;
    const float* lengths = pass.lengths.data<float>() + seen.begin;
    float* z = pass.dz.data<float>() + first;
    double expected = 0.0;  // sum over i of p z
    for (int64_t i = 0; i < seen.size(); ++i) {
      z[i] = pass.scale * products[i] * lengths[i];
      expected += double{p[i]} * z[i];
    }
    losses[static_cast<size_t>(q)] =
        softmax(1.0f, {z, static_cast<size_t>(seen.size())}) - expected;
    for (int64_t i = 0; with_gradient && i < seen.size(); ++i) z[i] = (z[i] - p[i]) * share;
  }
  double sum = 0.0;
  for (const double loss : losses) sum += loss;
  return sum / static_cast<double>(pass.queries);
}

// Through z = scale products lengths: dz becomes the gradient of the products. Returns the gradient
// of the logarithm of the scale.
float RankingObjective::through_product(Pass& pass, Tensor& dlengths) {
  std::vector<double> of_scale(static_cast<size_t>(pass.queries));
  float* dz = pass.dz.data<float>();
  const float* products = pass.products.data<float>();
  const float* lengths = pass.lengths.data<float>();
#pragma omp parallel for
  for (int64_t first = 0; first < pass.keys; first += kPiece) {
    const int64_t count = std::min(kPiece, pass.keys - first);
    float sums[kPiece] = {};
    for (int64_t q = 0; q < pass.queries; ++q) {
      const int64_t row = q * pass.keys + first;
      for (int64_t i = 0; i < count; ++i) sums[i] += dz[row + i] * products[row + i];
    }
    for (int64_t i = 0; i < count; ++i) dlengths.data<float>()[first + i] = pass.scale * sums[i];
  }
#pragma omp parallel for
  for (int64_t q = 0; q < pass.queries; ++q) {
    double sum = 0.0;
    for (int64_t i = 0; i < pass.keys; ++i) {
      float& d = dz[q * pass.keys + i];
      sum += double{d} * products[q * pass.keys + i] * lengths[i];
      d *= pass.scale * lengths[i];
    }
    of_scale[static_cast<size_t>(q)] = sum;
  }
  double sum = 0.0;
  for (const double of_query : of_scale) sum += of_query;
  return static_cast<float>(sum * pass.scale);
}

void RankingObjective::backward(const RankingParameters& at, Pass& pass,
                                RankingParameters& gradient) const {
  const int64_t bits = at.hash.keys.shape()[2];
  Stream stream;
  Tensor dlengths({pass.keys}, DType::f32);
  gradient.log_scale.data<float>()[0] = through_product(pass, dlengths);
  Tensor dy({pass.queries, bits}, DType::f32), dx({pass.keys, bits}, DType::f32);
  matmul(stream, pass.dz, Transpose::no, pass.signs, Transpose::no, Accumulate::no, dy);
  matmul(stream, pass.dz, Transpose::yes, pass.y, Transpose::no, Accumulate::no, dx);
#pragma omp parallel for
  for (int64_t i = 0; i < pass.keys; ++i) {
    const float* x = pass.x.data<float>() + i * bits;
    float* d = dx.data<float>() + i * bits;
    const float length = pass.lengths.data<float>()[i];
    const float along = length > 0.0f ? dlengths.data<float>()[i] / length : 0.0f;
    float* soft = pass.signs.data<float>() + i * bits;  // no longer needed
    std::copy_n(x, bits, soft);
    soft_sign(2.0f / width_, {soft, static_cast<size_t>(bits)});  // tanh(x / width)
    for (int64_t j = 0; j < bits; ++j) {
      d[j] = d[j] * (1.0f - soft[j] * soft[j]) / width_ + along * x[j];
    }
  }
  matmul(stream, pass.q_sum, Transpose::yes, dy, Transpose::no, Accumulate::no,
         matrix(gradient.hash.queries));
  matmul(stream, pass.k, Transpose::yes, dx, Transpose::no, Accumulate::no,
         matrix(gradient.hash.keys));
  sum_rows(dx, -1.0f, values_of(gradient.hash.thresholds));
}

}  // namespace switchyard
