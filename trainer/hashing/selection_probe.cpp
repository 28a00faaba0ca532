#include "trainer/hashing/selection_probe.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/host_f32.h"
#include "trainer/hashing/scores.h"

namespace switchyard {
namespace {

template <class T>
std::vector<T> on_host(Stream& stream, ConstTensorView x) {
  Tensor host(x.shape(), x.dtype());
  copy(stream, x, host);
  stream.synchronize();
  return {host.data<T>(), host.data<T>() + host.num_elements()};
}

std::vector<double> softmax(std::vector<double> scores) {
  const double greatest = *std::ranges::max_element(scores);
  double total = 0.0;
  for (double& score : scores) total += score = std::exp(score - greatest);
  for (double& score : scores) score /= total;
  return scores;
}

// Copies the rows of (sequence, key/value head) number `row` out of those of the whole batch.
GroupAttention rows_of(std::span<const float> q, std::span<const float> k, std::span<const float> v,
                       int64_t row, int64_t group, int64_t length, const Shape& cache) {
  const int64_t max_len = cache[2], head_dim = cache[3];
  const auto part = [&](std::span<const float> from, int64_t stride, int64_t count) {
    const auto begin = from.begin() + row * stride * head_dim;
    return std::vector<float>(begin, begin + count * head_dim);
  };
  return {.q = part(q, group, group),
          .k = part(k, max_len, length),
          .v = part(v, max_len, length),
          .group = group,
          .length = length,
          .head_dim = head_dim};
}

void add(SelectionSums& sums, const SelectionSums& one) {
  sums.queries += one.queries;
  sums.keys += one.keys;
  sums.recall += one.recall;
  sums.attention_mass += one.attention_mass;
  sums.output_error += one.output_error;
}

}  // namespace

AttentionReference::AttentionReference(const GroupAttention& rows) : rows_(rows) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(rows.head_dim));
  const auto row_of = [&](const std::vector<float>& from, int64_t row) {
    return std::span(from).subspan(static_cast<size_t>(row * rows.head_dim),
                                   static_cast<size_t>(rows.head_dim));
  };
  std::vector<double> summed(static_cast<size_t>(rows.length));
  for (int64_t g = 0; g < rows.group; ++g) {
    std::vector<double> scores(static_cast<size_t>(rows.length));
    for (int64_t p = 0; p < rows.length; ++p) {
      const double product = dot(row_of(rows.q, g), row_of(rows.k, p));
      summed[static_cast<size_t>(p)] += product;
      scores[static_cast<size_t>(p)] = scale * product;
    }
    const std::vector<double>& weights = weights_.emplace_back(softmax(std::move(scores)));
    std::vector<double>& output =
        outputs_.emplace_back(std::vector<double>(static_cast<size_t>(rows.head_dim)));
    for (int64_t p = 0; p < rows.length; ++p) {
      for (int64_t i = 0; i < rows.head_dim; ++i) {
        output[static_cast<size_t>(i)] +=
            weights[static_cast<size_t>(p)] * rows.v[static_cast<size_t>(p * rows.head_dim + i)];
      }
    }
  }
  std::vector<int64_t> order(summed.size());
  std::iota(order.rbegin(), order.rend(), int64_t{0});  // the most recent first
  std::ranges::stable_sort(order, std::ranges::greater{},
                           [&](int64_t p) { return summed[static_cast<size_t>(p)]; });
  rank_.resize(summed.size());
  for (size_t i = 0; i < order.size(); ++i) {
    rank_[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  }
}

SelectionSums AttentionReference::compare(const std::vector<int32_t>& indices,
                                          const std::vector<float>& log_weights,
                                          int64_t budget) const {
  const auto group = static_cast<double>(rows_.group);
  SelectionSums result{.queries = 1.0};
  double keys = 0.0, best = 0.0;  // of all query heads
  for (size_t g = 0; g < weights_.size(); ++g) {
    const std::vector<double>& all = outputs_[g];
    double mass = 0.0, total = 0.0;
    std::vector<double> output(all.size());
    for (size_t i = 0; i < indices.size(); ++i) {
      const auto p = static_cast<size_t>(indices[i]);
      const double factor =
          log_weights.empty() ? 1.0 : std::exp(double{log_weights[g * indices.size() + i]});
      if (factor == 0.0) continue;  // this query head leaves the key out
      keys += 1.0;
      best += rank_[p] < budget;
      mass += weights_[g][p];
      const double weight = factor * weights_[g][p];
      total += weight;
      for (size_t d = 0; d < output.size(); ++d) {
        output[d] += weight * rows_.v[p * output.size() + d];
      }
    }
    double difference = 0.0, length = 0.0;
    for (size_t d = 0; d < output.size(); ++d) {
      // If the weights underflow to zero, the output is zero.
      const double chosen = total > 0.0 ? output[d] / total : 0.0;
      difference += (chosen - all[d]) * (chosen - all[d]);
      length += all[d] * all[d];
    }
    result.attention_mass += mass / group;
    result.output_error += std::sqrt(difference / std::max(length, 1e-300)) / group;
  }
  result.keys = keys / group;
  result.recall = best / (static_cast<double>(budget) * group);
  return result;
}

SelectionProbe::SelectionProbe(std::vector<Candidate> candidates, std::vector<double> budgets,
                               int64_t rows, Sums& sums)
    : candidates_(std::move(candidates)), budgets_(std::move(budgets)), rows_(rows), sums_(sums) {}

void SelectionProbe::append(Stream& stream, Workspace& workspace, ConstTensorView k,
                            int64_t first_position) {
  for (const Candidate& candidate : candidates_) {
    for (const auto& selector : candidate) selector->append(stream, workspace, k, first_position);
  }
}

// The choice of one candidate with one budget, on the host.
struct SelectionProbe::Choice {
  std::vector<int32_t> indices, counts;
  std::vector<float> log_weights;  // of all query heads; empty: zero
  int64_t stride = 0;              // indices per (sequence, key/value head)

  int64_t count(int64_t row, int64_t kv_heads) const {
    return counts[static_cast<size_t>(row / kv_heads)];
  }
  std::vector<int32_t> of(int64_t row, int64_t kv_heads) const {
    const auto begin = indices.begin() + row * stride;
    return {begin, begin + count(row, kv_heads)};
  }
  // [group][count]
  std::vector<float> weights_of(int64_t row, int64_t kv_heads, int64_t group) const {
    std::vector<float> result;
    for (int64_t head = row * group; !log_weights.empty() && head < (row + 1) * group; ++head) {
      const auto begin = log_weights.begin() + head * stride;
      result.insert(result.end(), begin, begin + count(row, kv_heads));
    }
    return result;
  }
};

std::vector<std::vector<SelectionProbe::Choice>> SelectionProbe::choose(Stream& stream,
                                                                        Workspace& workspace,
                                                                        ConstTensorView q,
                                                                        ConstTensorView k,
                                                                        const CachedKeys& cache) {
  std::vector<std::vector<Choice>> choices(candidates_.size());
  for (size_t c = 0; c < candidates_.size(); ++c) {
    for (size_t b = 0; b < budgets_.size(); ++b) {
      WorkspaceScope scope(workspace);
      KeySelector& selector = *candidates_[c][candidates_[c].size() == 1 ? 0 : b];
      const SelectedKeys chosen =
          selector.select(stream, workspace, q, k, cache, budget_tokens(budgets_[b], cache.length));
      choices[c].push_back({.indices = on_host<int32_t>(stream, chosen.indices),
                            .counts = on_host<int32_t>(stream, chosen.counts),
                            .log_weights = chosen.log_weights
                                               ? on_host<float>(stream, chosen.log_weights)
                                               : std::vector<float>(),
                            .stride = chosen.indices.dim(2)});
    }
  }
  return choices;
}

SelectedKeys SelectionProbe::select(Stream& stream, Workspace& workspace, ConstTensorView q,
                                    ConstTensorView k, const CachedKeys& cache, const KeyBudget&) {
  const int64_t kv_heads = cache.k.dim(1), group = q.dim(1) / kv_heads;
  const std::vector<std::vector<Choice>> choices = choose(stream, workspace, q, k, cache);
  const HostF32 queries = host_f32(stream, q), keys = host_f32(stream, cache.k),
                values = host_f32(stream, cache.v);
  // Parallel over heads, which have sums of their own; the order of the sequences is fixed.
#pragma omp parallel for schedule(dynamic)
  for (int64_t head = 0; head < kv_heads; ++head) {
    for (int64_t row = head; row < rows_ * kv_heads; row += kv_heads) {
      const GroupAttention rows = rows_of(queries.values(), keys.values(), values.values(), row,
                                          group, cache.length, cache.k.shape());
      const AttentionReference reference(rows);
      for (size_t c = 0; c < choices.size(); ++c) {
        for (size_t b = 0; b < budgets_.size(); ++b) {
          const Choice& choice = choices[c][b];
          add(sums_[c][b][static_cast<size_t>(head)],
              reference.compare(choice.of(row, kv_heads), choice.weights_of(row, kv_heads, group),
                                budget_tokens(budgets_[b], cache.length)));
        }
      }
    }
  }
  return {};
}

}  // namespace switchyard
