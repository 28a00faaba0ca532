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

std::vector<int32_t> host_indices(Stream& stream, ConstTensorView x) {
  Tensor host(x.shape(), DType::i32);
  copy(stream, x, host);
  stream.synchronize();
  return {host.data<int32_t>(), host.data<int32_t>() + host.num_elements()};
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
                                          int64_t budget) const {
  SelectionSums result{.queries = 1.0};
  const auto is_best = [&](int32_t p) { return rank_[static_cast<size_t>(p)] < budget; };
  result.recall =
      static_cast<double>(std::ranges::count_if(indices, is_best)) / static_cast<double>(budget);
  for (int64_t g = 0; g < rows_.group; ++g) {
    const std::vector<double>& weights = weights_[static_cast<size_t>(g)];
    const std::vector<double>& all = outputs_[static_cast<size_t>(g)];
    double mass = 0.0;
    std::vector<double> output(all.size());
    for (const int32_t p : indices) {
      const double weight = weights[static_cast<size_t>(p)];
      mass += weight;
      for (size_t i = 0; i < output.size(); ++i) {
        output[i] += weight * rows_.v[static_cast<size_t>(p) * output.size() + i];
      }
    }
    double difference = 0.0, length = 0.0;
    for (size_t i = 0; i < output.size(); ++i) {
      // If the mass underflows to zero, the output is zero.
      const double chosen = mass > 0.0 ? output[i] / mass : 0.0;
      difference += (chosen - all[i]) * (chosen - all[i]);
      length += all[i] * all[i];
    }
    result.attention_mass += mass / static_cast<double>(rows_.group);
    result.output_error +=
        std::sqrt(difference / std::max(length, 1e-300)) / static_cast<double>(rows_.group);
  }
  return result;
}

SelectionProbe::SelectionProbe(std::vector<std::unique_ptr<KeySelector>> candidates,
                               std::vector<double> budgets, int64_t rows, Sums& sums)
    : candidates_(std::move(candidates)), budgets_(std::move(budgets)), rows_(rows), sums_(sums) {}

void SelectionProbe::append(Stream& stream, Workspace& workspace, ConstTensorView k,
                            int64_t first_position) {
  for (const auto& candidate : candidates_) {
    candidate->append(stream, workspace, k, first_position);
  }
}

// The choice of one candidate with one budget, on the host.
struct SelectionProbe::Choice {
  std::vector<int32_t> indices, counts;
  int64_t stride = 0;  // indices per (sequence, key/value head)

  std::vector<int32_t> of(int64_t row, int64_t kv_heads) const {
    const auto begin = indices.begin() + row * stride;
    return {begin, begin + counts[static_cast<size_t>(row / kv_heads)]};
  }
};

std::vector<std::vector<SelectionProbe::Choice>> SelectionProbe::choose(Stream& stream,
                                                                        Workspace& workspace,
                                                                        ConstTensorView q,
                                                                        ConstTensorView k,
                                                                        const CachedKeys& cache) {
  std::vector<std::vector<Choice>> choices(candidates_.size());
  for (size_t c = 0; c < candidates_.size(); ++c) {
    for (const double budget : budgets_) {
      WorkspaceScope scope(workspace);
      const SelectedKeys chosen = candidates_[c]->select(stream, workspace, q, k, cache,
                                                         budget_tokens(budget, cache.length));
      choices[c].push_back({.indices = host_indices(stream, chosen.indices),
                            .counts = host_indices(stream, chosen.counts),
                            .stride = chosen.indices.dim(2)});
    }
  }
  return choices;
}

SelectedKeys SelectionProbe::select(Stream& stream, Workspace& workspace, ConstTensorView q,
                                    ConstTensorView k, const CachedKeys& cache, int64_t) {
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
          add(sums_[c][b][static_cast<size_t>(head)],
              reference.compare(choices[c][b].of(row, kv_heads),
                                budget_tokens(budgets_[b], cache.length)));
        }
      }
    }
  }
  return {};
}

}  // namespace switchyard
