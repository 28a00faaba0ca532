#include "trainer/hashing/quality.h"

#include <algorithm>
#include <cmath>
#include <deque>
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

// The codes of a head's queries and keys, and the keys that are chosen by them, with the ops that
// decoding uses.
class CodeSelection {
 public:
  CodeSelection(const HashProjection& hash, const HeadQueryKeys& head)
      : hash_(hash),
        group_(head.group()),
        words_(hash.columns() / 32),
        q_codes_({1, num_query_codes(hash.query_codes(), group_), head.queries(), words_},
                 DType::i32),
        codes_({1, 1, head.k.shape()[1], hash.bits() / 32}, DType::i32) {
    const int64_t rows = head.k.shape()[1], head_dim = head.head_dim();
    if (has_planes()) norms_ = Tensor({1, 1, rows}, DType::f32);
    hash_encode(stream_, head.q.view().reshape({1, group_, head.queries(), head_dim}),
                head.k.view().reshape({1, 1, rows, head_dim}), hash, /*first_position=*/0, q_codes_,
                codes_, norms_ ? norms_.view() : TensorView());
  }

  // Scores the keys that a query sees, from which `choose` chooses.
  void score(int64_t query, const KeyRange& keys) {
    const int64_t num_codes = q_codes_.shape()[1], queries = q_codes_.shape()[2];
    Tensor of_query({1, num_codes, words_}, DType::i32);
    for (int64_t c = 0; c < num_codes; ++c) {
      std::copy_n(q_codes_.data<int32_t>() + (c * queries + query) * words_, words_,
                  of_query.data<int32_t>() + c * words_);
    }
    length_.data<int32_t>()[0] = static_cast<int32_t>(keys.size());
    distances_ = Tensor({1, 1, keys.size()}, DType::u16);
    const int64_t words = codes_.shape()[3];
    const ConstTensorView codes =
        codes_.view().reshape({codes_.shape()[2], words}).rows(keys.begin, keys.size());
    hamming_scores(stream_, of_query, hash_.query_codes(),
                   codes.reshape({1, 1, keys.size(), words}), length_, distances_);
    if (!has_planes()) return;
    scores_ = Tensor({1, 1, keys.size()}, DType::f32);
    const ConstTensorView norms =
        norms_.view().reshape({norms_.shape()[2]}).rows(keys.begin, keys.size());
    const int64_t weight = weight_of_codes(hash_.query_codes(), group_, hash_.key_planes);
    key_norm_scores(stream_, distances_, norms.reshape({1, 1, keys.size()}), length_, weight,
                    hash_.columns(), scores_);
  }

  std::vector<int32_t> choose(int64_t count) {
    std::vector<int32_t> chosen(static_cast<size_t>(count));
    Tensor counts({1}, DType::i32);
    counts.data<int32_t>()[0] = static_cast<int32_t>(count);
    select_top_k(stream_, workspace_, has_planes() ? scores_.view() : distances_.view(), length_,
                 counts, /*sink=*/0, /*recent=*/0,
                 view_of(std::span(chosen)).reshape({1, 1, count}));
    return chosen;
  }

 private:
  bool has_planes() const { return hash_.query_codes() == QueryCodes::planes; }

  HashProjection hash_;
  int64_t group_, words_;  // of a plane
  Stream stream_;
  Workspace workspace_{Device()};
  Tensor q_codes_;  // [1, codes, queries, words]
  Tensor codes_;    // [1, 1, keys of all sequences, words of all planes]
  Tensor norms_;    // [1, 1, keys of all sequences]; empty with signs
  Tensor length_{{1}, DType::i32}, distances_, scores_;
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

// The true order and masses of one query's keys, with which selections are compared.
struct Truth {
  std::vector<int64_t> best;  // all keys by falling sum of the group's scores
  std::vector<double> mass;
};

Truth truth_of(ConstTensorView scores, int64_t head_dim) {
  const int64_t group = scores.dim(0), keys = scores.dim(1);
  Truth truth{.best = {}, .mass = std::vector<double>(static_cast<size_t>(keys))};
  std::vector<double> cost(static_cast<size_t>(keys));
  for (int64_t g = 0; g < group; ++g) {
    const std::span row(scores.data<float>() + g * keys, static_cast<size_t>(keys));
    add_softmax(row, 1.0 / std::sqrt(static_cast<double>(head_dim)), group, truth.mass);
    for (size_t i = 0; i < row.size(); ++i) cost[i] -= row[i];
  }
  truth.best = ranking(cost);
  return truth;
}

// The means over one more query.
void add_selections(CodeSelection& selection, const Truth& truth, HashQuality& result) {
  const double weight = 1.0 / static_cast<double>(++result.queries);
  const auto update = [&](double& mean, double value) { mean += weight * (value - mean); };
  for (size_t b = 0; b < kBudgets.size(); ++b) {
    const auto count = std::max<int64_t>(
        1, static_cast<int64_t>(kBudgets[b] * static_cast<double>(truth.best.size())));
    std::vector<bool> is_best(truth.best.size());
    double hits = 0.0, mass = 0.0, best_mass = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      const auto key = static_cast<size_t>(truth.best[static_cast<size_t>(i)]);
      is_best[key] = true;
      best_mass += truth.mass[key];
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

Truth truth_of_query(const HeadQueryKeys& head, int64_t query, const KeyRange& keys) {
  Tensor scores({head.group(), keys.size()}, DType::f32);
  for (int64_t g = 0; g < head.group(); ++g) {
    const float* q = head.q.data<float>() + (g * head.queries() + query) * head.head_dim();
    score_keys({q, static_cast<size_t>(head.head_dim())},
               head.k.data<float>() + keys.begin * head.head_dim(),
               {scores.data<float>() + g * keys.size(), static_cast<size_t>(keys.size())});
  }
  const auto count = static_cast<size_t>(scores.num_elements());
  require(count_not_finite({scores.data<float>(), count}).total() == 0,
          "the product of a held-out query and a key is too large for f32, so the model has "
          "diverged; name an earlier checkpoint with checkpoint.resume");
  return truth_of(scores, head.head_dim());
}

}  // namespace

void add_quality(std::span<const HashProjection> projections, const HeadQueryKeys& head,
                 std::span<HashQuality> results) {
  require(projections.size() == results.size(), "{} results for {} projections", results.size(),
          projections.size());
  std::deque<CodeSelection> selections;
  for (const HashProjection& projection : projections) selections.emplace_back(projection, head);
  for (int64_t query = 0; query < head.queries(); ++query) {
    const KeyRange& keys = head.visible[static_cast<size_t>(query)];
    const Truth truth = truth_of_query(head, query, keys);
    for (size_t p = 0; p < selections.size(); ++p) {
      selections[p].score(query, keys);
      add_selections(selections[p], truth, results[p]);
    }
  }
}

}  // namespace switchyard
