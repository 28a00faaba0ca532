#include "trainer/inference/answer_key.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace switchyard {

nlohmann::json to_json(const AnswerScore& score) {
  return {
      {"samples", score.samples}, {"exact", score.exact_share()}, {"answers", score.right_share()}};
}

void add_sample(AnswerScore& score, const std::vector<bool>& right) {
  const auto count = std::ranges::count(right, true);
  ++score.samples;
  score.exact += count == std::ssize(right);
  score.answers += std::ssize(right);
  score.right += count;
}

void add_scores(RankReduction& reduction, AnswerScores& scores) {
  for (AnswerScore& score : scores) {
    for (int64_t* count : {&score.samples, &score.exact, &score.answers, &score.right}) {
      reduction.sum(*count);
    }
  }
}

}  // namespace switchyard
