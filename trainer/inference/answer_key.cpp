#include "trainer/inference/answer_key.h"

#include <algorithm>

namespace switchyard {

void add_sample(AnswerScore& score, const std::vector<bool>& right) {
  const auto count = std::ranges::count(right, true);
  ++score.samples;
  score.exact += count == std::ssize(right);
  score.answers += std::ssize(right);
  score.right += count;
}

void append_counts(const AnswerScores& scores, std::vector<double>& values) {
  for (const AnswerScore& score : scores) {
    for (const int64_t count : {score.samples, score.exact, score.answers, score.right}) {
      values.push_back(static_cast<double>(count));
    }
  }
}

void take_counts(std::vector<double>::const_iterator& next, AnswerScores& scores) {
  for (AnswerScore& score : scores) {
    for (int64_t* count : {&score.samples, &score.exact, &score.answers, &score.right}) {
      *count = static_cast<int64_t>(*next++);
    }
  }
}

}  // namespace switchyard
