#include "trainer/recall/text_task_evaluation.h"

#include <algorithm>
#include <span>

#include "kernels/runtime/check.h"
#include "parallel/rank_reduction.h"
#include "trainer/inference/greedy_decoding.h"

namespace switchyard {
namespace {

bool all_true(const std::vector<bool>& values) { return std::ranges::count(values, false) == 0; }

class Examiner {
 public:
  Examiner(Session& session, const RunConfig& config, const Tokenizer& tokenizer,
           const std::vector<std::string>& running_text,
           const std::vector<SelectorFactory>& methods)
      : session_(session),
        config_(config),
        tokenizer_(tokenizer),
        running_text_(running_text),
        methods_(methods) {
    for (const SelectorFactory& method : methods) prompt_queries_.push_back(method.prompt_queries);
  }

  // The scores of this rank's samples by method.
  AnswerScores run(const TextTaskCase& of) {
    AnswerScores scores(methods_.size());
    Communicator& world = session_.dist.world();
    const int64_t ranks = world.size(), rank = world.rank();
    const bool alone = works_alone(session_.dist);
    const auto answer_share = [&] {
      for (int64_t i = alone ? rank : 0; i < config_.tasks.samples; i += alone ? ranks : 1) {
        answer(of, i, scores);
      }
    };
    if (alone) {
      run_collectively(world, answer_share);
    } else {
      answer_share();
      if (rank != 0) scores.assign(scores.size(), {});
    }
    return scores;
  }

 private:
  // Where ranks work together, all of them throw what one finds.
  TextSample sample(const TextTaskCase& of, int64_t index) const {
    TextSample sample;
    const auto make = [&] {
      sample =
          make_text_sample(config_.tasks, tokenizer_, running_text_, of.task, of.length, index);
    };
    if (works_alone(session_.dist)) {
      make();
    } else {
      run_collectively(session_.dist.world(), make);
    }
    return sample;
  }

  void answer(const TextTaskCase& of, int64_t index, AnswerScores& scores) {
    const TextSample asked = sample(of, index);
    GreedyDecoding decoding(session_.stream, session_.model, session_.dist,
                            {.prompt = asked.prompt,
                             .max_tokens = answer_tokens(of.task),
                             .end_token = tokenizer_.end_of_document(),
                             .vocab_size = tokenizer_.vocab_size(),
                             .prompt_queries = prompt_queries_});
    for (size_t m = 0; m < methods_.size(); ++m) {
      const auto found = [&](std::span<const int32_t> tokens) {
        return find_answers(tokenizer_.decode(tokens), asked.answers);
      };
      const std::vector<int32_t> tokens = decoding.run(
          methods_[m], [&](std::span<const int32_t> begin) { return all_true(found(begin)); });
      add_sample(scores[m], found(tokens));
    }
  }

  Session& session_;
  const RunConfig& config_;
  const Tokenizer& tokenizer_;
  const std::vector<std::string>& running_text_;
  const std::vector<SelectorFactory>& methods_;
  std::vector<int64_t> prompt_queries_;  // of the methods
};

}  // namespace

std::vector<TextTaskCase> text_task_cases(const RunConfig& config) {
  std::vector<int64_t> lengths = config.tasks.lengths;
  if (lengths.empty()) lengths.push_back(config.model.seq_len);
  std::vector<TextTaskCase> cases;
  for (const int64_t length : lengths) {
    for (const TextTask task : config.tasks.names) cases.push_back({task, length});
  }
  return cases;
}

void require_text_tasks(const RunConfig& config) {
  require(!config.tasks.names.empty(), "tasks.names is empty: name at least one task");
  require(
      config.data.tokenizer.type != TokenizerType::recall,
      "data.tokenizer.type: recall writes no English: `eval` and `eval-hash` ask its own tasks");
  for (const auto& [task, length] : text_task_cases(config)) {
    require(length <= config.model.seq_len,
            "tasks.lengths: {} tokens are more than model.seq_len = {}; choose fewer", length,
            config.model.seq_len);
    require(!needs_running_text(task) || !config.tasks.haystack.empty(),
            "tasks.haystack is missing: {} hides its needles in running text; name text files or "
            "folders, or leave the task out of tasks.names",
            to_string(task));
  }
}

std::vector<AnswerScores> evaluate_text_tasks(
    Session& session, const RunConfig& config, const Tokenizer& tokenizer,
    const std::vector<std::string>& running_text, const std::vector<TextTaskCase>& cases,
    const std::vector<SelectorFactory>& methods,
    const std::function<void(size_t, const AnswerScores&)>& on_case) {
  std::vector<AnswerScores> scores(methods.size());
  Examiner examiner(session, config, tokenizer, running_text, methods);
  for (size_t c = 0; c < cases.size(); ++c) {
    AnswerScores of_case = examiner.run(cases[c]);
    RankReduction reduction(session.dist.world());
    add_scores(reduction, of_case);
    reduction.run(session.stream);
    for (size_t m = 0; m < methods.size(); ++m) scores[m].push_back(of_case[m]);
    if (session.dist.rank() == 0) on_case(c, of_case);
  }
  return scores;
}

}  // namespace switchyard
