#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/runtime/check.h"
#include "layers/decoding/decode_methods.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/newest_model.h"
#include "trainer/config/run_paths.h"
#include "trainer/data/open_data.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/folder_lock.h"
#include "trainer/files/outputs.h"
#include "trainer/hashing/evaluate_hash.h"
#include "trainer/hashing/load_decode_setup.h"
#include "trainer/recall/recall_evaluation.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The bits of hash.evaluation.bits or, if it is empty, all bits for which rank 0 finds weights.
std::vector<int64_t> bits_to_measure(MpiRuntime& mpi, const RunConfig& config) {
  if (!config.hash.evaluation.bits.empty()) return config.hash.evaluation.bits;
  constexpr int kMostWords = 16;
  std::vector<int64_t> present(kMostWords + 1);
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    for (int words = 1; words <= kMostWords; ++words) {
      present[static_cast<size_t>(words)] = fs::exists(hash_weights_path(config, 32 * words));
    }
  });
  Stream stream;
  mpi.world().broadcast(stream, view_of(std::span(present)), 0);
  std::vector<int64_t> bits;
  for (int words = 1; words <= kMostWords; ++words) {
    if (present[static_cast<size_t>(words)]) bits.push_back(32 * words);
  }
  // If there are no weights, the loader throws the error that names the missing file.
  if (bits.empty()) bits.push_back(config.hash.bits);
  return bits;
}

std::vector<HashCandidate> load_candidates(MpiRuntime& mpi, const RunConfig& config,
                                           Session& session, const std::string& fingerprint) {
  std::vector<HashCandidate> candidates;
  const auto add = [&](DecodeMethod method, int bits, bool key_norm) {
    DecodeConfig keys = config.decode.keys;
    keys.method = method;
    keys.key_norm = key_norm;
    candidates.push_back({load_decode_setup(mpi, config, keys, bits, session, fingerprint), bits});
  };
  for (const DecodeMethod method : config.hash.evaluation.methods) {
    const HashProjections projections = row_of(method).projections;
    if (projections == HashProjections::none) {
      add(method, 0, false);
      continue;
    }
    for (const int64_t bits : bits_to_measure(mpi, config)) {
      add(method, static_cast<int>(bits), false);
      // The scores of planes have the keys' lengths already.
      const bool signs = !candidates.back().setup.has_planes();
      const bool learned = projections == HashProjections::learned;
      if (learned && signs && config.hash.evaluation.key_norm) {
        add(method, static_cast<int>(bits), true);
      }
    }
  }
  return candidates;
}

std::string name_of(const HashCandidate& candidate) {
  const DecodeConfig& keys = candidate.setup.config;
  if (row_of(keys.method).projections == HashProjections::none) {
    return std::string(to_string(keys.method));
  }
  return fmt::format("{} {}{}", to_string(keys.method), candidate.bits,
                     keys.key_norm ? " norm" : "");
}

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

// File names in it may hold bytes that are not UTF-8; JSON has none, so they are replaced.
std::string as_text(const json& content) {
  return content.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

void require_output(const fs::path& path) {
  require_replaceable({"run.dir", path}, "an evaluation by eval-hash", [](const fs::path& old) {
    return read_file(old).find("\"switchyard.hash_evaluation\"") != std::string::npos;
  });
}

// Rank 0 writes the file; all ranks return its path.
fs::path write_json(MpiRuntime& mpi, const RunConfig& config, const json& content) {
  const fs::path path = RunPaths(config.run.dir).hash_evaluation();
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() == 0) write_durably(path, as_text(content));
  });
  return path;
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
  const OpenData data = open_data(mpi, config, NeedsTraining::no);
  run_collectively(mpi.world(), [&] {
    require(data.validation != nullptr,
            "data.validation is missing: it names the token file to evaluate on");
    require(config.hash.dense_layers < config.model.num_layers,
            "hash.dense_layers = {} leaves none of the {} layers to choose keys in; lower it",
            config.hash.dense_layers, config.model.num_layers);
    if (mpi.rank() == 0) require_output(RunPaths(config.run.dir).hash_evaluation());
  });
  const FolderLock lock(mpi.world(), RunPaths(config.run.dir).hash(), "eval-hash");
  Session session(mpi, config);
  const LoadedModel model = load_newest_model(mpi, config, session, data.tokenizer->hash());
  const std::vector<HashCandidate> candidates =
      load_candidates(mpi, config, session, model.fingerprint);
  const auto log = [](const std::string& line) {
    fmt::print("{}\n", line);
    std::fflush(stdout);
  };
  const HashEvaluation evaluation = evaluate_hash(session, config, data.validation->loader,
                                                  recall_answers(config), candidates, log);
  require_finite(mpi, evaluation, candidates, model);
  const fs::path path =
      write_json(mpi, config, to_json(evaluation, candidates, config, model.description));
  if (mpi.rank() != 0) return kExitDone;
  fmt::print("{}, over {} decoded tokens of {}\n", model.description, evaluation.dense.targets,
             describe(config.data.validation));
  print_table(evaluation, candidates, config);
  fmt::print("{}\n", path.string());
  return kExitDone;
}

}  // namespace switchyard
