#include "trainer/hashing/objective.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/basic/elementwise.h"
#include "kernels/basic/soft_sign.h"
#include "kernels/linear/block_product.h"
#include "kernels/linear/matmul.h"
#include "trainer/hashing/scores.h"

namespace switchyard {
namespace {

// Sequences are split into this many runs, whose sums are added in order, so that the result does
// not depend on the number of threads. More threads than that have no work.
constexpr int64_t kParts = 64;

}  // namespace

// The sums of one run of sequences, and scratch for one sequence.
struct HashObjective::Part {
  Part(const HashPairs& pairs, int64_t num_bits)
      : bits(num_bits),
        dweight({pairs.k.shape()[1], num_bits}, DType::f32),
        hq(static_cast<size_t>(pairs.group() * num_bits)),
        weighted(static_cast<size_t>((pairs.group() + 1) * num_bits)),
        pulls(static_cast<size_t>((pairs.group() + 1) * num_bits)) {}

  std::span<float> query(int64_t g) { return row(hq, g); }
  std::span<float> row(std::vector<float>& rows, int64_t i) const {
    return std::span(rows).subspan(static_cast<size_t>(i * bits), static_cast<size_t>(bits));
  }

  int64_t bits;
  HashLoss loss;
  Tensor dweight;
  std::vector<float> hq;        // [group, bits]
  std::vector<float> hk;        // [keys, bits], then the gradient of the projections
  std::vector<float> labels;    // [group + 1, keys]; the last row is 1
  std::vector<float> weighted;  // [group + 1, bits]: labels hk
  std::vector<float> pulls;     // [group + 1, bits]: labels' pulls is added to dhk
};

HashLoss HashObjective::gradient(ConstTensorView weight, TensorView dweight) const {
  const int64_t parts = std::min(kParts, pairs_.sequences());
  std::vector<Part> sums;
  sums.reserve(static_cast<size_t>(parts));
  for (int64_t p = 0; p < parts; ++p) sums.emplace_back(pairs_, weight.dim(1));
#pragma omp parallel for schedule(dynamic)
  for (int64_t p = 0; p < parts; ++p) {
    add_sequences(weight, p * pairs_.sequences() / parts, (p + 1) * pairs_.sequences() / parts,
                  sums[static_cast<size_t>(p)]);
  }
  HashLoss loss;
  for (const Part& part : sums) {
    loss.similarity += part.loss.similarity;
    loss.balance += part.loss.balance;
  }
  float* out = dweight.data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < dweight.num_elements(); ++i) {
    out[i] = 0.0f;
    for (const Part& part : sums) out[i] += part.dweight.data<float>()[i];
  }
  add_decorrelation(config_, weight, loss, dweight);
  return loss;
}

void HashObjective::add_sequences(ConstTensorView weight, int64_t begin, int64_t end,
                                  Part& part) const {
  for (int64_t sequence = begin; sequence < end; ++sequence) add_sequence(weight, sequence, part);
}

void HashObjective::add_sequence(ConstTensorView weight, int64_t sequence, Part& part) const {
  const int64_t group = pairs_.group(), bits = part.bits, head_dim = weight.dim(0);
  const int64_t first = pairs_.row_offsets[static_cast<size_t>(sequence)];
  const int64_t keys = pairs_.row_offsets[static_cast<size_t>(sequence) + 1] - first;
  const auto sigma = static_cast<float>(config_.sigma);
  const MatrixOperand w{weight.raw(), bits};
  const MatrixOperand k{pairs_.k.data<float>() + first * head_dim, head_dim};
  const MatrixOperand q{pairs_.q.data<float>() + sequence * head_dim,
                        pairs_.sequences() * head_dim};

  part.hk.resize(static_cast<size_t>(keys * bits));
  multiply_block(keys, bits, head_dim, k, w, Accumulate::no, part.hk.data());
  multiply_block(group, bits, head_dim, q, w, Accumulate::no, part.hq.data());
  soft_sign(sigma, part.hk);
  soft_sign(sigma, part.hq);

  part.labels.assign(static_cast<size_t>((group + 1) * keys), 1.0f);
  for (int64_t g = 0; g < group; ++g) {
    std::copy_n(pairs_.labels.data<float>() + g * pairs_.rows() + first, keys,
                part.labels.data() + g * keys);
  }
  multiply_block(group + 1, bits, keys, {part.labels.data(), keys}, {part.hk.data(), bits},
                 Accumulate::no, part.weighted.data());

  add_queries(part);
  add_keys(part);
  float* dweight = part.dweight.data<float>();
  multiply_block(head_dim, bits, keys, {k.data, k.stride, Transpose::yes}, {part.hk.data(), bits},
                 Accumulate::yes, dweight);
  multiply_block(head_dim, bits, group, {q.data, q.stride, Transpose::yes}, {part.hq.data(), bits},
                 Accumulate::yes, dweight);
}

// The terms of the queries and of the balance; hq becomes the gradient of the queries' projections.
void HashObjective::add_queries(Part& part) const {
  const int64_t group = pairs_.group(), bits = part.bits;
  const auto keys = static_cast<int64_t>(part.labels.size()) / (group + 1);
  const double epsilon = config_.similarity_weight / static_cast<double>(pairs_.rows());
  const double half_sigma = 0.5 * config_.sigma;
  for (int64_t g = 0; g < group; ++g) {
    const float* label = part.labels.data() + g * keys;
    double label_sum = 0.0;
    for (int64_t i = 0; i < keys; ++i) label_sum += label[i];
    const std::span<float> h = part.query(g), weighted = part.row(part.weighted, g);
    part.loss.similarity += epsilon * (label_sum * dot(h, h) - 2.0 * dot(h, weighted));
    const std::span<float> pull = part.row(part.pulls, g);
    for (size_t b = 0; b < h.size(); ++b) {
      pull[b] = static_cast<float>(-2.0 * epsilon * h[b]);
      const double dh = 2.0 * epsilon * (label_sum * h[b] - weighted[b]);
      h[b] = static_cast<float>(dh * half_sigma * (1.0 - double{h[b]} * h[b]));
    }
  }
  const std::span<float> sum = part.row(part.weighted, group), pull = part.row(part.pulls, group);
  const double eta = config_.balance_weight / static_cast<double>(pairs_.sequences());
  const double per_key = 1.0 / static_cast<double>(keys);
  part.loss.balance += eta * per_key * per_key * dot(sum, sum);
  for (int64_t b = 0; b < bits; ++b) {
    const auto i = static_cast<size_t>(b);
    pull[i] = static_cast<float>(2.0 * eta * per_key * per_key * sum[i]);
  }
}

// The terms of the keys alone; hk becomes the gradient of their projections.
void HashObjective::add_keys(Part& part) const {
  const int64_t group = pairs_.group(), bits = part.bits;
  const auto keys = static_cast<int64_t>(part.labels.size()) / (group + 1);
  const double epsilon = config_.similarity_weight / static_cast<double>(pairs_.rows());
  const auto half_sigma = static_cast<float>(0.5 * config_.sigma);
  std::vector<float> pulled(static_cast<size_t>(keys * bits));
  multiply_block(keys, bits, group + 1, {part.labels.data(), keys, Transpose::yes},
                 {part.pulls.data(), bits}, Accumulate::no, pulled.data());
  for (int64_t i = 0; i < keys; ++i) {
    double label_sum = 0.0;
    for (int64_t g = 0; g < group; ++g) label_sum += part.labels[static_cast<size_t>(g * keys + i)];
    float* h = part.hk.data() + i * bits;
    const float* pull = pulled.data() + i * bits;
    const auto own = static_cast<float>(2.0 * epsilon * label_sum);
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t b = 0; b < bits; ++b) {
      const float square = h[b] * h[b];
      squares += square;
      h[b] = (own * h[b] + pull[b]) * half_sigma * (1.0f - square);
    }
    part.loss.similarity += epsilon * label_sum * squares;
  }
}

void add_decorrelation(const HashTrainingConfig& config, ConstTensorView weight, HashLoss& loss,
                       TensorView dweight) {
  const int64_t bits = weight.dim(1);
  Stream stream;
  Tensor excess({bits, bits}, DType::f32);  // W'W - I
  matmul(stream, weight, Transpose::yes, weight, Transpose::no, Accumulate::no, excess);
  float* values = excess.data<float>();
  double squares = 0.0;
  for (int64_t a = 0; a < bits; ++a) {
    values[a * bits + a] -= 1.0f;
    for (int64_t b = 0; b < bits; ++b)
      squares += double{values[a * bits + b]} * values[a * bits + b];
  }
  const double delta = config.decorrelation_softness;
  const double norm = std::sqrt(squares + delta * delta);
  loss.orthogonality = std::sqrt(squares);
  loss.decorrelation = config.decorrelation_weight * (norm - delta);
  if (norm == 0.0) return;
  scale(stream, static_cast<float>(2.0 * config.decorrelation_weight / norm), excess);
  matmul(stream, weight, Transpose::no, excess, Transpose::no, Accumulate::yes, dweight);
}

}  // namespace switchyard
