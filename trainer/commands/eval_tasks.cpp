#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/runtime/check.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/method_evaluation.h"
#include "trainer/commands/newest_model.h"
#include "trainer/config/run_paths.h"
#include "trainer/data/open_data.h"
#include "trainer/files/folder_lock.h"
#include "trainer/recall/running_text.h"
#include "trainer/recall/text_task_evaluation.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kFormat[] = "switchyard.task_evaluation";

struct TaskEvaluation {
  std::vector<TextTaskCase> cases;  // all of them
  AnswerScores dense;               // by case
  std::vector<TextTaskCase> solved;
  std::vector<AnswerScores> decoded;  // [candidate x budget][solved case]
};

// Selectors refer to the candidates.
std::vector<SelectorFactory> selectors_of(const std::vector<HashCandidate>& candidates,
                                          const std::vector<double>& budgets) {
  std::vector<SelectorFactory> selectors;
  for (const HashCandidate& candidate : candidates) {
    for (const double budget : budgets) selectors.push_back(selectors_of(candidate.setup, budget));
  }
  return selectors;
}

std::string percent(const AnswerScore& score) {
  return fmt::format("{:.2f}%", 100.0 * score.right_share());
}

// Says how far the evaluation has come.
void log_case(const std::vector<TextTaskCase>& cases, size_t number, std::string_view result) {
  fmt::print("{} of {}: {}, {} tokens{}\n", number + 1, cases.size(), to_string(cases[number].task),
             cases[number].length, result);
  std::fflush(stdout);
}

// A line per length, a column per task.
void print_dense(const RunConfig& config, const TaskEvaluation& evaluation) {
  fmt::print("dense, answers found\n{:<10}", "tokens");
  for (const TextTask task : config.tasks.names) fmt::print("{:>17}", to_string(task));
  const size_t columns = config.tasks.names.size();
  for (size_t c = 0; c < evaluation.cases.size(); ++c) {
    if (c % columns == 0) fmt::print("\n{:<10}", evaluation.cases[c].length);
    fmt::print("{:>17}", percent(evaluation.dense[c]));
  }
  fmt::print("\n");
}

// A table per length of the cases that dense decoding solves.
void print_methods(const RunConfig& config, const std::vector<HashCandidate>& candidates,
                   const TaskEvaluation& evaluation) {
  const std::vector<TextTaskCase>& solved = evaluation.solved;
  const std::vector<double>& budgets = config.hash.evaluation.budgets;
  if (candidates.empty()) return;
  for (size_t begin = 0, end = 0; begin < solved.size(); begin = end) {
    const int64_t length = solved[begin].length;
    while (end < solved.size() && solved[end].length == length) ++end;
    fmt::print("\n{} tokens, {} samples\n{:<20}{:>8}", length, config.tasks.samples, "method",
               "budget");
    for (size_t c = begin; c < end; ++c) fmt::print("{:>17}", to_string(solved[c].task));
    fmt::print("{:>9}\n", "mean");
    for (size_t m = 0; m < evaluation.decoded.size(); ++m) {
      const AnswerScores& scores = evaluation.decoded[m];
      fmt::print("{:<20}{:>8}", name_of(candidates[m / budgets.size()]),
                 budget_tokens(budgets[m % budgets.size()], length));
      double sum = 0.0;
      for (size_t c = begin; c < end; ++c) {
        fmt::print("{:>17}", percent(scores[c]));
        sum += scores[c].right_share();
      }
      fmt::print("{:>8.2f}%\n", 100.0 * sum / static_cast<double>(end - begin));
    }
  }
}

json cases_json(const std::vector<TextTaskCase>& cases, const AnswerScores& scores) {
  json result = json::array();
  for (size_t c = 0; c < cases.size(); ++c) {
    json one = {{"task", to_string(cases[c].task)}, {"length", cases[c].length}};
    one.update(to_json(scores[c]));
    result.push_back(std::move(one));
  }
  return result;
}

json to_json(const RunConfig& config, const std::vector<HashCandidate>& candidates,
             const TaskEvaluation& evaluation, const std::string& checkpoint) {
  const std::vector<double>& budgets = config.hash.evaluation.budgets;
  json results = json::array();
  for (size_t m = 0; m < evaluation.decoded.size(); ++m) {
    const double budget = budgets[m % budgets.size()];
    json one = to_json(candidates[m / budgets.size()]);
    one["budget"] = budget;
    one["cases"] = cases_json(evaluation.solved, evaluation.decoded[m]);
    for (json& of : one["cases"]) of["budget_tokens"] = budget_tokens(budget, of["length"]);
    results.push_back(std::move(one));
  }
  const TextTasksSection& tasks = config.tasks;
  return {{"format", kFormat},
          {"version", 1},
          {"checkpoint", checkpoint},
          {"dense_layers", config.hash.dense_layers},
          {"haystack", tasks.haystack},
          {"prefix", tasks.prefix},
          {"suffix", tasks.suffix},
          {"seed", tasks.seed},
          {"keys", tasks.keys},
          {"values", tasks.values},
          {"queries", tasks.queries},
          {"hops", tasks.hops},
          {"least_dense", tasks.least_dense},
          {"dense", cases_json(evaluation.cases, evaluation.dense)},
          {"results", std::move(results)}};
}

// Its sentences; says on rank 0 what of the files is not in them.
std::vector<std::string> running_text(MpiRuntime& mpi, const RunConfig& config) {
  RunningText text;
  run_collectively(mpi.world(), [&] {
    if (std::ranges::none_of(config.tasks.names, needs_running_text)) return;
    text = read_running_text(config.tasks.haystack, "tasks.haystack", config.data.encoding_errors);
    require(!text.sentences.empty(), "tasks.haystack holds no sentence; name files with text");
  });
  if (mpi.rank() == 0) {
    for (const std::string& note : text.notes) fmt::print("tasks.haystack: {}\n", note);
  }
  return text.sentences;
}

TaskEvaluation evaluate(Session& session, const RunConfig& config, const Tokenizer& tokenizer,
                        const std::vector<std::string>& sentences,
                        const std::vector<HashCandidate>& candidates) {
  TaskEvaluation result{.cases = text_task_cases(config), .dense = {}, .solved = {}, .decoded = {}};
  const DecodeSetup dense{};
  const auto log_dense = [&](size_t c, const AnswerScores& scores) {
    log_case(result.cases, c, ": " + percent(scores.front()));
  };
  result.dense = evaluate_text_tasks(session, config, tokenizer, sentences, result.cases,
                                     {selectors_of(dense)}, log_dense)
                     .front();
  if (session.dist.rank() == 0) print_dense(config, result);
  for (size_t c = 0; c < result.cases.size(); ++c) {
    if (result.dense[c].right_share() < config.tasks.least_dense) continue;
    result.solved.push_back(result.cases[c]);
  }
  if (candidates.empty()) return result;
  const auto log = [&](size_t c, const AnswerScores&) { log_case(result.solved, c, ""); };
  result.decoded =
      evaluate_text_tasks(session, config, tokenizer, sentences, result.solved,
                          selectors_of(candidates, config.hash.evaluation.budgets), log);
  return result;
}

}  // namespace

int eval_tasks_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  RunConfig config = loaded.config;
  const fs::path output = RunPaths(config.run.dir).task_evaluation();
  const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(mpi, config);
  run_collectively(mpi.world(), [&] {
    require_text_tasks(config);
    if (mpi.rank() == 0) require_evaluation(output, kFormat, "eval-tasks");
  });
  const std::vector<std::string> sentences = running_text(mpi, config);
  const FolderLock lock(mpi.world(), RunPaths(config.run.dir).hash(), "eval-tasks");
  Session session(mpi, config);
  const LoadedModel model = load_newest_model(mpi, config, session, tokenizer->hash());
  const int64_t context =
      std::ranges::max(text_task_cases(config), {}, &TextTaskCase::length).length;
  const std::vector<HashCandidate> candidates =
      load_candidates(mpi, config, context, session, model.fingerprint);
  const TaskEvaluation evaluation = evaluate(session, config, *tokenizer, sentences, candidates);
  write_evaluation(mpi, output, to_json(config, candidates, evaluation, model.description));
  if (mpi.rank() != 0) return kExitDone;
  fmt::print("{}\n", model.description);
  print_methods(config, candidates, evaluation);
  fmt::print("{}\n", output.string());
  return kExitDone;
}

}  // namespace switchyard
