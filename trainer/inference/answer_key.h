#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "parallel/rank_reduction.h"

namespace switchyard {

// How many answers of one task's samples were right.
struct AnswerScore {
  int64_t samples = 0;
  int64_t exact = 0;  // samples with every answer right
  int64_t answers = 0;
  int64_t right = 0;

  double exact_share() const { return samples > 0 ? static_cast<double>(exact) / samples : 0.0; }
  double right_share() const { return answers > 0 ? static_cast<double>(right) / answers : 0.0; }
};
using AnswerScores = std::vector<AnswerScore>;  // by the number of the task

// {"samples", "exact", "answers"}: the number of samples and both shares.
nlohmann::json to_json(const AnswerScore& score);

// A benchmark's knowledge of its held-out text: each document is a sample of a task, and the
// targets of a sample are its answers.
class AnswerKey {
 public:
  virtual ~AnswerKey() = default;

  virtual int num_tasks() const = 0;
  // Answers are ids below this one; a model's vocabulary may be padded with further ones.
  virtual int64_t vocab_size() const = 0;
  virtual std::string_view task_name(int task) const = 0;
  // The task of the sample that begins with this token, if one does.
  virtual std::optional<int> task_of(int32_t first_token) const = 0;
  // Whether `token` is right for the answer at `position` of a sample of that task.
  //   targets  [n]: the answers, and -1 everywhere else; targets[position] is an answer
  virtual bool is_right(int task, std::span<const int32_t> targets, int64_t position,
                        int32_t token) const = 0;
};

// Counts a sample whose answers were predicted as `right` says, in the order of the answers.
void add_sample(AnswerScore& score, const std::vector<bool>& right);

// Adds the counts of all tasks to the reduction, as sums over ranks.
void add_scores(RankReduction& reduction, AnswerScores& scores);

}  // namespace switchyard
