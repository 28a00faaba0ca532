#include "trainer/hashing/quality.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/decode/hamming_scores.h"
#include "kernels/decode/hash_encode.h"
#include "kernels/decode/select_top_k.h"
#include "kernels/runtime/check.h"
#include "trainer/files/not_finite.h"
#include "trainer/hashing/scores.h"

namespace switchyard {
namespace {

// Chooses keys by their codes, with the ops that decoding uses.
class CodeSelection {
 public:
  //   weight  [head_dim, bits]
  CodeSelection(ConstTensorView weight, const HeadQueryKeys& head)
      : words_(weight.dim(1) / 32),
        q_codes_({1, head.q.shape()[0], head.q.shape()[1], words_}, DType::i32),
        codes_({1, 1, head.k.shape()[1], words_}, DType::i32) {
    const int64_t head_dim = weight.dim(0);
    hash_encode(stream_, head.q.view().reshape({1, head.q.shape()[0], head.q.shape()[1], head_dim}),
                head.k.view().reshape({1, 1, head.k.shape()[1], head_dim}),
                weight.reshape({1, head_dim, weight.dim(1)}), /*first_position=*/0, q_codes_,
                codes_, {});
  }

  // Measures one query's distances to the keys [first, first + keys), from which `choose` chooses.
  void measure_distances(int64_t sequence, int64_t first, int64_t keys) {
    const int64_t group = q_codes_.shape()[1], sequences = q_codes_.shape()[2];
    Tensor query({1, group, words_}, DType::i32);
    for (int64_t g = 0; g < group; ++g) {
      std::copy_n(q_codes_.data<int32_t>() + (g * sequences + sequence) * words_, words_,
                  query.data<int32_t>() + g * words_);
    }
    length_.data<int32_t>()[0] = static_cast<int32_t>(keys);
    distances_ = Tensor({1, 1, keys}, DType::u16);
    const ConstTensorView codes =
        codes_.view().reshape({codes_.shape()[2], words_}).rows(first, keys);
    hamming_scores(stream_, query, codes.reshape({1, 1, keys, words_}), length_, distances_);
  }

  std::vector<int32_t> choose(int64_t count) {
    std::vector<int32_t> chosen(static_cast<size_t>(count));
    Tensor counts({1}, DType::i32);
    counts.data<int32_t>()[0] = static_cast<int32_t>(count);
    select_top_k(stream_, workspace_, distances_, length_, counts, /*sink=*/0, /*recent=*/0,
                 view_of(std::span(chosen)).reshape({1, 1, count}));
    return chosen;
  }

 private:
  Stream stream_;
  Workspace workspace_{Device()};
  int64_t words_;
  Tensor q_codes_, codes_;  // [1, group, sequences, words], [1, 1, keys of all sequences, words]
  Tensor length_{{1}, DType::i32}, distances_;
};

// The indices of all keys by rising cost; of equal costs the most recent key is first.
std::vector<int64_t> ranking(const std::vector<double>& cost) {
  std::vector<int64_t> order(cost.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const double cost_a = cost[static_cast<size_t>(a)], cost_b = cost[static_cast<size_t>(b)];
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

// The true costs and masses of one query's keys, with which selections are compared.
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

void add_selections(CodeSelection& selection, const Truth& truth, HashQuality& result) {
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
    for (const int32_t position : selection.choose(count)) {
      const auto key = static_cast<size_t>(position);
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
  CodeSelection selection(weight, head);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t first = head.row_offsets[static_cast<size_t>(s)];
    const int64_t keys = head.row_offsets[static_cast<size_t>(s) + 1] - first;
    Tensor scores({group, keys}, DType::f32);
    for (int64_t g = 0; g < group; ++g) {
      score_keys(
          {head.q.data<float>() + (g * sequences + s) * head_dim, static_cast<size_t>(head_dim)},
          head.k.data<float>() + first * head_dim,
          {scores.data<float>() + g * keys, static_cast<size_t>(keys)});
    }
    require(
        count_not_finite({scores.data<float>(), static_cast<size_t>(group * keys)}).total() == 0,
        "the product of a held-out query and a key is too large for f32, so the model has "
        "diverged; name an earlier checkpoint with checkpoint.resume");
    selection.measure_distances(s, first, keys);
    add_selections(selection, truth_of(scores, head_dim), result);
  }
}

}  // namespace switchyard
