#include "trainer/hashing/quality.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/matmul.h"
#include "trainer/hashing/scores.h"

namespace switchyard {
namespace {

// Sign bits of x W, packed; one row per vector.
class Codes {
 public:
  //   x  [vectors, head_dim]
  Codes(ConstTensorView x, ConstTensorView weight)
      : words_((weight.dim(1) + 63) / 64), packed_(static_cast<size_t>(x.dim(0) * words_)) {
    const int64_t bits = weight.dim(1);
    Tensor projected({x.dim(0), bits}, DType::f32);
    Stream stream;
    matmul(stream, x, Transpose::no, weight, Transpose::no, Accumulate::no, projected);
    const float* values = projected.data<float>();
    for (int64_t i = 0; i < x.dim(0); ++i) {
      for (int64_t b = 0; b < bits; ++b) {
        if (values[i * bits + b] > 0.0f) {
          packed_[static_cast<size_t>(i * words_ + b / 64)] |= uint64_t{1} << (b % 64);
        }
      }
    }
  }

  std::span<const uint64_t> row(int64_t i) const {
    return std::span(packed_).subspan(static_cast<size_t>(i * words_), static_cast<size_t>(words_));
  }

 private:
  int64_t words_;
  std::vector<uint64_t> packed_;
};

int hamming_distance(std::span<const uint64_t> a, std::span<const uint64_t> b) {
  int distance = 0;
  for (size_t w = 0; w < a.size(); ++w) distance += std::popcount(a[w] ^ b[w]);
  return distance;
}

// The indices of all keys, the smallest cost first; ties: the most recent.
template <class T>
std::vector<int64_t> ranking(const std::vector<T>& cost) {
  std::vector<int64_t> order(cost.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const T cost_a = cost[static_cast<size_t>(a)], cost_b = cost[static_cast<size_t>(b)];
    return cost_a != cost_b ? cost_a < cost_b : a > b;
  });
  return order;
}

// Adds softmax(scores) / group to `mass`.
void add_softmax(std::span<const float> scores, double scale, int64_t group,
                 std::vector<double>& mass) {
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (const double score : scores) sum += std::exp(scale * (score - top));
  for (size_t i = 0; i < scores.size(); ++i) {
    mass[i] += std::exp(scale * (double{scores[i]} - top)) / sum / static_cast<double>(group);
  }
}

// What selections of one query's keys are measured against.
struct Truth {
  std::vector<double> cost;  // minus the group's summed score
  std::vector<double> mass;
};

Truth truth_of(ConstTensorView scores, int64_t head_dim) {
  const int64_t group = scores.dim(0), keys = scores.dim(1);
  Truth truth{std::vector<double>(static_cast<size_t>(keys)),
              std::vector<double>(static_cast<size_t>(keys))};
  for (int64_t g = 0; g < group; ++g) {
    const std::span row(scores.data<float>() + g * keys, static_cast<size_t>(keys));
    add_softmax(row, 1.0 / std::sqrt(static_cast<double>(head_dim)), group, truth.mass);
    for (size_t i = 0; i < row.size(); ++i) truth.cost[i] -= row[i];
  }
  return truth;
}

void add_selections(const std::vector<int64_t>& chosen, const Truth& truth, HashQuality& result) {
  const std::vector<int64_t> best = ranking(truth.cost);
  const double weight = 1.0 / static_cast<double>(++result.queries);
  const auto update = [&](double& mean, double value) { mean += weight * (value - mean); };
  for (size_t b = 0; b < kBudgets.size(); ++b) {
    const auto count =
        std::max<int64_t>(1, static_cast<int64_t>(kBudgets[b] * static_cast<double>(best.size())));
    std::vector<bool> is_best(best.size());
    double hits = 0.0, mass = 0.0, best_mass = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      is_best[static_cast<size_t>(best[static_cast<size_t>(i)])] = true;
      best_mass += truth.mass[static_cast<size_t>(best[static_cast<size_t>(i)])];
    }
    for (int64_t i = 0; i < count; ++i) {
      const auto key = static_cast<size_t>(chosen[static_cast<size_t>(i)]);
      hits += is_best[key] ? 1.0 : 0.0;
      mass += truth.mass[key];
    }
    update(result.recall[b], hits / static_cast<double>(count));
    update(result.attention_mass[b], mass);
    update(result.best_mass[b], best_mass);
  }
}

}  // namespace

void add_quality(ConstTensorView weight, const HeadQueryKeys& head, HashQuality& result) {
  const int64_t group = head.q.shape()[0], sequences = head.q.shape()[1];
  const int64_t head_dim = weight.dim(0);
  const ConstTensorView q = head.q.view().reshape({group * sequences, head_dim});
  const ConstTensorView k = head.k.view().reshape({head.row_offsets.back(), head_dim});
  const Codes query_codes(q, weight), key_codes(k, weight);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t first = head.row_offsets[static_cast<size_t>(s)];
    const int64_t keys = head.row_offsets[static_cast<size_t>(s) + 1] - first;
    Tensor scores({group, keys}, DType::f32);
    std::vector<int64_t> distance(static_cast<size_t>(keys));
    for (int64_t g = 0; g < group; ++g) {
      const int64_t row = g * sequences + s;
      score_keys({q.data<float>() + row * head_dim, static_cast<size_t>(head_dim)},
                 k.data<float>() + first * head_dim,
                 {scores.data<float>() + g * keys, static_cast<size_t>(keys)});
      for (int64_t i = 0; i < keys; ++i) {
        distance[static_cast<size_t>(i)] +=
            hamming_distance(query_codes.row(row), key_codes.row(first + i));
      }
    }
    add_selections(ranking(distance), truth_of(scores, head_dim), result);
  }
}

}  // namespace switchyard
