#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "layers/decoding/key_selector.h"

namespace switchyard {

// How well the chosen keys of one key/value head represent all keys, summed over queries.
struct SelectionSums {
  double queries = 0.0;
  double keys = 0.0;    // that a query attends to, mean over the group
  double recall = 0.0;  // share of the true top N, by sum over the group of <q, k>, N the budget
  double attention_mass = 0.0;  // share of the softmax, mean over the group
  double output_error = 0.0;    // |o - o_all| / |o_all|, mean over the group
};

// Measures several ways to choose keys while a layer decodes densely: for every new query all
// candidates choose keys, and then the query attends to all keys.
class SelectionProbe final : public KeySelector {
 public:
  // Adds to sums[candidate][budget][key/value head] the values of the first `rows` sequences of the
  // batch. `budgets` are as for budget_tokens. `sums` must outlive this object.
  //   candidates  each is one selector for all budgets, or one per budget if its method evicts
  using Candidate = std::vector<std::unique_ptr<KeySelector>>;
  using Sums = std::vector<std::vector<std::vector<SelectionSums>>>;
  SelectionProbe(std::vector<Candidate> candidates, std::vector<double> budgets, int64_t rows,
                 Sums& sums);

  void append(Stream& stream, Workspace& workspace, ConstTensorView k,
              int64_t first_position) override;
  // Always returns an empty selection, which stands for all keys.
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget) override;

 private:
  struct Choice;
  // [candidate][budget]
  std::vector<std::vector<Choice>> choose(Stream& stream, Workspace& workspace, ConstTensorView q,
                                          ConstTensorView k, const CachedKeys& cache);

  std::vector<Candidate> candidates_;
  std::vector<double> budgets_;
  int64_t rows_;
  Sums& sums_;
};

// The rows of one (sequence, key/value head), in f32 on the host.
struct GroupAttention {
  std::vector<float> q;     // [group, head_dim]
  std::vector<float> k, v;  // [length, head_dim]
  int64_t group = 0, length = 0, head_dim = 0;
};

// Full attention of the group's queries, in double, with which choices are compared.
class AttentionReference {
 public:
  explicit AttentionReference(const GroupAttention& rows);

  // Compares the keys at `indices` with the `budget` keys that have the highest true scores.
  //   log_weights  [group][indices], see SelectedKeys; empty: zero
  SelectionSums compare(const std::vector<int32_t>& indices, const std::vector<float>& log_weights,
                        int64_t budget) const;

 private:
  const GroupAttention& rows_;
  std::vector<std::vector<double>> weights_;  // [group][length] softmax
  std::vector<std::vector<double>> outputs_;  // [group][head_dim]
  std::vector<int64_t> rank_;  // [length] by score, the best first; ties: the most recent
};

}  // namespace switchyard
