#include <fmt/format.h>

#include <algorithm>
#include <cmath>
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
#include "trainer/hashing/evaluate_hash.h"
#include "trainer/recall/recall_evaluation.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kFormat[] = "switchyard.hash_evaluation";

// Measurements of a model that has diverged replace none.
void require_finite(MpiRuntime& mpi, const HashEvaluation& evaluation,
                    const std::vector<HashCandidate>& candidates, const LoadedModel& model) {
  const auto check = [&](const std::string& name, double value, const char* figure) {
    require(std::isfinite(value),
            "{}: the {} of {} decoding is {}: the model has diverged; name an earlier checkpoint "
            "with checkpoint.resume",
            model.description, figure, name, value);
  };
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    check("dense", evaluation.dense.loss(), "loss");
    for (size_t c = 0; c < candidates.size(); ++c) {
      for (size_t b = 0; b < evaluation.decoded[c].size(); ++b) {
        const SelectionSums mean = mean_of(evaluation.selected_by(c, b));
        check(name_of(candidates[c]), evaluation.decoded[c][b].loss(), "loss");
        check(name_of(candidates[c]), mean.attention_mass, "attention mass");
        check(name_of(candidates[c]), mean.output_error, "output error");
      }
    }
  });
}

// The share of right answers in percent, mean over the tasks.
std::string answers_of(const DecodeScore& score) {
  double sum = 0.0;
  int tasks = 0;
  for (const AnswerScore& task : score.answers) {
    if (task.samples == 0) continue;
    sum += task.right_share();
    ++tasks;
  }
  return tasks > 0 ? fmt::format("{:.2f}%", 100.0 * sum / tasks) : "-";
}

void print_table(const HashEvaluation& evaluation, const std::vector<HashCandidate>& candidates,
                 const RunConfig& config) {
  fmt::print("{:<20}{:>8}{:>9}{:>9}{:>9}{:>9}{:>12}{:>10}\n", "method", "budget", "keys", "recall",
             "mass", "error", "perplexity", "answers");
  fmt::print("{:<20}{:>8}{:>9}{:>9}{:>9}{:>9}{:>12.4f}{:>10}\n", "dense", "all", "all", "-", "-",
             "-", evaluation.dense.perplexity(), answers_of(evaluation.dense));
  const std::vector<double>& budgets = config.hash.evaluation.budgets;
  for (size_t c = 0; c < candidates.size(); ++c) {
    for (size_t b = 0; b < budgets.size(); ++b) {
      const SelectionSums mean = mean_of(evaluation.selected_by(c, b));
      const DecodeScore& decoded = evaluation.decoded[c][b];
      fmt::print("{:<20}{:>8}{:>9.1f}{:>9.4f}{:>9.4f}{:>9.4f}{:>12.4f}{:>10}\n",
                 name_of(candidates[c]), budget_tokens(budgets[b], config.model.seq_len), mean.keys,
                 mean.recall, mean.attention_mass, mean.output_error, decoded.perplexity(),
                 answers_of(decoded));
    }
  }
}

}  // namespace

int eval_hash_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  RunConfig config = loaded.config;
  const fs::path output = RunPaths(config.run.dir).hash_evaluation();
  // Texts may be shorter than the model's, whose own length decides its positions.
  RunConfig of_texts = config;
  const int64_t wanted = config.hash.evaluation.seq_len;
  if (wanted > 0) of_texts.model.seq_len = wanted;
  const OpenData data = open_data(mpi, of_texts, NeedsTraining::no);
  config.model.vocab_size = of_texts.model.vocab_size;
  run_collectively(mpi.world(), [&] {
    require(data.validation != nullptr,
            "data.validation is missing: it names the token file to evaluate on");
    require(config.hash.dense_layers < config.model.num_layers,
            "hash.dense_layers = {} leaves none of the {} layers to choose keys in; lower it",
            config.hash.dense_layers, config.model.num_layers);
    if (mpi.rank() == 0) require_evaluation(output, kFormat, "eval-hash");
  });
  const FolderLock lock(mpi.world(), RunPaths(config.run.dir).hash(), "eval-hash");
  Session session(mpi, config);
  const LoadedModel model = load_newest_model(mpi, config, session, data.tokenizer->hash());
  const std::vector<HashCandidate> candidates =
      load_candidates(mpi, config, of_texts.model.seq_len, session, model.fingerprint);
  const auto log = [](const std::string& line) {
    fmt::print("{}\n", line);
    std::fflush(stdout);
  };
  const HashEvaluation evaluation = evaluate_hash(session, of_texts, data.validation->loader,
                                                  recall_answers(config), candidates, log);
  require_finite(mpi, evaluation, candidates, model);
  write_evaluation(mpi, output, to_json(evaluation, candidates, of_texts, model.description));
  if (mpi.rank() != 0) return kExitDone;
  fmt::print("{}, over {} decoded tokens of {}\n", model.description, evaluation.dense.targets,
             describe(config.data.validation));
  print_table(evaluation, candidates, of_texts);
  fmt::print("{}\n", output.string());
  return kExitDone;
}

}  // namespace switchyard
