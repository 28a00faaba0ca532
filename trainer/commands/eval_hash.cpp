#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/runtime/check.h"
#include "layers/decoding/decode_methods.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/newest_model.h"
#include "trainer/data/open_data.h"
#include "trainer/files/file_io.h"
#include "trainer/hashing/evaluate_hash.h"
#include "trainer/hashing/load_decode_setup.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// What hash.evaluation.bits names, or all bits that have learned weights; rank 0 looks.
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
  // Without any, the loader says what is missing.
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
      const bool learned = projections == HashProjections::learned;
      if (learned && config.hash.evaluation.key_norm) add(method, static_cast<int>(bits), true);
    }
  }
  return candidates;
}

// Rank 0 writes; nothing has the name before it is whole.
fs::path write_json(MpiRuntime& mpi, const RunConfig& config, const json& content) {
  const fs::path path = fs::path(config.run.dir) / "hash" / "evaluation.json";
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    fs::create_directories(path.parent_path());
    fs::path unfinished = path;
    unfinished += ".tmp";
    write_text(unfinished, content.dump(1) + "\n");
    fs::rename(unfinished, path);
  });
  return path;
}

std::string name_of(const json& result) {
  std::string name = result["method"];
  if (result.contains("bits")) name += fmt::format(" {}", result["bits"].get<int>());
  if (result.value("key_norm", false)) name += " norm";
  return name;
}

void print_table(const json& evaluation) {
  const json& dense = evaluation["dense"];
  fmt::print("{:<20}{:>8}{:>9}{:>9}{:>9}{:>12}{:>10}\n", "method", "budget", "recall", "mass",
             "error", "perplexity", "answers");
  const auto answers = [](const json& of) {
    if (!of.contains("tasks")) return std::string("-");
    double sum = 0.0;
    for (const json& task : of["tasks"]) sum += task["answers"].get<double>();
    return fmt::format("{:.2f}%", 100.0 * sum / static_cast<double>(of["tasks"].size()));
  };
  fmt::print("{:<20}{:>8}{:>9}{:>9}{:>9}{:>12.4f}{:>10}\n", "dense", "all", "-", "-", "-",
             dense["perplexity"].get<double>(), answers(dense));
  for (const json& result : evaluation["results"]) {
    fmt::print("{:<20}{:>8}{:>9.4f}{:>9.4f}{:>9.4f}{:>12.4f}{:>10}\n", name_of(result),
               result["budget_tokens"].get<int64_t>(), result["recall"].get<double>(),
               result["attention_mass"].get<double>(), result["output_error"].get<double>(),
               result["perplexity"].get<double>(), answers(result));
  }
}

}  // namespace

int eval_hash_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  RunConfig config = loaded.config;
  const OpenData data = open_data(mpi, config, NeedsTraining::no);
  run_collectively(mpi.world(), [&] {
    require(data.validation != nullptr,
            "data.validation is missing: the token file to evaluate on");
    require(config.hash.dense_layers < config.model.num_layers,
            "hash.dense_layers = {} leaves no layer of the model's {} to choose keys in",
            config.hash.dense_layers, config.model.num_layers);
  });
  Session session(mpi, config);
  const LoadedModel model = load_newest_model(mpi, config, session);
  const std::vector<HashCandidate> candidates =
      load_candidates(mpi, config, session, model.fingerprint);
  const HashEvaluation evaluation = evaluate_hash(session, config, data.validation->loader,
                                                  candidates, [](const std::string& line) {
                                                    fmt::print("{}\n", line);
                                                    std::fflush(stdout);
                                                  });
  const json content = to_json(evaluation, candidates, config, model.description);
  const fs::path path = write_json(mpi, config, content);
  if (mpi.rank() != 0) return kExitDone;
  fmt::print("{}, over {} decoded tokens of {}\n", model.description, evaluation.dense.targets,
             config.data.validation);
  print_table(content);
  fmt::print("{}\n", path.string());
  return kExitDone;
}

}  // namespace switchyard
