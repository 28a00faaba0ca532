#include "trainer/hashing/ranking_objective.h"

#include <algorithm>
#include <cmath>

#include "kernels/basic/softmax.h"
#include "kernels/linear/matmul.h"
#include "trainer/hashing/levels.h"

namespace switchyard {
namespace {

ConstTensorView matrix(const Tensor& stack) {
  return stack.view().reshape({stack.shape()[1], stack.shape()[2]});
}
TensorView matrix(Tensor& stack) {
  return stack.view().reshape({stack.shape()[1], stack.shape()[2]});
}

// The factor with which z is an estimate of the mean over the group of q.k / sqrt(head_dim), if W
// and W' are tight frames: then y.x = columns / head_dim q.k.
double tight_frame_scale(int64_t group, int64_t head_dim, int64_t columns) {
  const auto d = static_cast<double>(head_dim);
  return d / static_cast<double>(columns) / (static_cast<double>(group) * std::sqrt(d));
}

}  // namespace

// One sequence's queries and keys, and what the backward pass needs.
struct RankingObjective::Pass {
  int64_t first_query, first_row, queries, keys;
  float scale = 0.0f;
  ConstTensorView k;           // [keys, head_dim]
  std::vector<KeyRange> seen;  // [queries] among these keys
  Tensor q_sum;                // [queries, head_dim]
  Tensor y;                    // [queries, columns]
  Tensor levels;               // [keys, columns] of x
  std::vector<float> lengths;  // [keys] of x
  Tensor products;             // [queries, keys]: y levels'
  Tensor dz;                   // [queries, keys]: the gradient of z
};

RankingParameters RankingParameters::zeros(int64_t head_dim, int64_t columns) {
  return {.hash = {.keys = Tensor({1, head_dim, columns}, DType::f32),
                   .queries = Tensor({1, head_dim, columns}, DType::f32),
                   .thresholds = Tensor({1, columns}, DType::f32)},
          .log_scale = Tensor({1}, DType::f32)};
}

RankingObjective::RankingObjective(const HeadQueryKeys& head, int64_t queries_per_sequence)
    : head_(head),
      per_sequence_(queries_per_sequence),
      mean_key_({1, head.head_dim()}, DType::f32) {
  const int64_t rows = head.k.shape()[1], dim = head.head_dim();
  std::vector<double> sums(static_cast<size_t>(dim));
  for (int64_t i = 0; i < rows * dim; ++i) {
    sums[static_cast<size_t>(i % dim)] += head.k.data<float>()[i];
  }
  for (int64_t d = 0; d < dim; ++d) {
    mean_key_.data<float>()[d] =
        static_cast<float>(sums[static_cast<size_t>(d)] / static_cast<double>(rows));
  }
}

void RankingObjective::centre(HashTensors& hash) const {
  Stream stream;
  matmul(stream, mean_key_, Transpose::no, matrix(hash.keys), Transpose::no, Accumulate::no,
         hash.thresholds);
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
            .levels = {},
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
  const int64_t head_dim = head_.head_dim(), columns = at.hash.keys.shape()[2];
  Stream stream;
  pass.scale = static_cast<float>(tight_frame_scale(head_.group(), head_dim, columns)) *
               std::exp(at.log_scale.data<float>()[0]);
  pass.q_sum = Tensor({pass.queries, head_dim}, DType::f32);
  for (int64_t g = 0; g < head_.group(); ++g) {
    const float* q = head_.q.data<float>() + (g * head_.queries() + pass.first_query) * head_dim;
    for (int64_t i = 0; i < pass.queries * head_dim; ++i) pass.q_sum.data<float>()[i] += q[i];
  }
  pass.y = Tensor({pass.queries, columns}, DType::f32);
  matmul(stream, pass.q_sum, Transpose::no, matrix(at.hash.queries), Transpose::no, Accumulate::no,
         pass.y);
  pass.levels = Tensor({pass.keys, columns}, DType::f32);
  matmul(stream, pass.k, Transpose::no, matrix(at.hash.keys), Transpose::no, Accumulate::no,
         pass.levels);
  const float* thresholds = at.hash.thresholds.data<float>();
#pragma omp parallel for
  for (int64_t i = 0; i < pass.keys; ++i) {
    float* x = pass.levels.data<float>() + i * columns;
    for (int64_t j = 0; j < columns; ++j) x[j] -= thresholds[j];
  }
  pass.lengths = round_to_levels(pass.levels, at.hash.key_planes, pass.levels);
  pass.products = Tensor({pass.queries, pass.keys}, DType::f32);
  matmul(stream, pass.y, Transpose::no, pass.levels, Transpose::yes, Accumulate::no, pass.products);
}

// p of all queries; 0 for keys that a query does not see.
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
    const float* lengths = pass.lengths.data() + seen.begin;
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

// Through z = scale products lengths: dz becomes the gradient of products lengths. Returns the
// gradient of the logarithm of the scale.
float RankingObjective::through_product(Pass& pass) {
  std::vector<double> of_scale(static_cast<size_t>(pass.queries));
#pragma omp parallel for
  for (int64_t q = 0; q < pass.queries; ++q) {
    float* dz = pass.dz.data<float>() + q * pass.keys;
    const float* products = pass.products.data<float>() + q * pass.keys;
    double sum = 0.0;
    for (int64_t i = 0; i < pass.keys; ++i) {
      sum += double{dz[i]} * products[i] * pass.lengths[static_cast<size_t>(i)];
      dz[i] *= pass.scale;
    }
    of_scale[static_cast<size_t>(q)] = sum;
  }
  double sum = 0.0;
  for (const double of_query : of_scale) sum += of_query;
  return static_cast<float>(sum * pass.scale);
}

void RankingObjective::backward(const RankingParameters& at, Pass& pass,
                                RankingParameters& gradient) const {
  const int64_t columns = at.hash.keys.shape()[2];
  Stream stream;
  gradient.log_scale.data<float>()[0] = through_product(pass);
  Tensor dy({pass.queries, columns}, DType::f32), dx({pass.keys, columns}, DType::f32);
  matmul(stream, pass.dz, Transpose::yes, pass.y, Transpose::no, Accumulate::no, dx);
#pragma omp parallel for
  for (int64_t i = 0; i < pass.keys; ++i) {
    float* scaled =
        pass.levels.data<float>() + i * columns;  // x, as the loss has it (class comment)
    for (int64_t j = 0; j < columns; ++j) scaled[j] *= pass.lengths[static_cast<size_t>(i)];
  }
  matmul(stream, pass.dz, Transpose::no, pass.levels, Transpose::no, Accumulate::no, dy);
  matmul(stream, pass.q_sum, Transpose::yes, dy, Transpose::no, Accumulate::no,
         matrix(gradient.hash.queries));
  matmul(stream, pass.k, Transpose::yes, dx, Transpose::no, Accumulate::no,
         matrix(gradient.hash.keys));
}

}  // namespace switchyard
