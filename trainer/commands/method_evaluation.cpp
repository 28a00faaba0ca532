#include "trainer/commands/method_evaluation.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <span>

#include "kernels/runtime/check.h"
#include "layers/decoding/decode_methods.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/outputs.h"
#include "trainer/hashing/load_decode_setup.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// The bits of hash.evaluation.bits or, if it is empty, all bits for which rank 0 finds weights.
std::vector<int64_t> bits_to_measure(MpiRuntime& mpi, const RunConfig& config) {
  if (!config.hash.evaluation.bits.empty()) return config.hash.evaluation.bits;
  constexpr int kMostWords = kMostHashBits / 32;
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

}  // namespace

std::vector<HashCandidate> load_candidates(MpiRuntime& mpi, const RunConfig& config,
                                           int64_t context, Session& session,
                                           const std::string& fingerprint) {
  std::vector<HashCandidate> candidates;
  // Weights that are read a second time have been warned of: `warn_beyond` is 0 then.
  const auto add = [&](DecodeMethod method, int bits, bool key_norm, int64_t warn_beyond) {
    DecodeConfig keys = config.decode.keys;
    keys.method = method;
    keys.key_norm = key_norm;
    candidates.push_back(
        {load_decode_setup(mpi, config, keys, bits, warn_beyond, session, fingerprint), bits});
  };
  for (const DecodeMethod method : config.hash.evaluation.methods) {
    const HashProjections projections = row_of(method).projections;
    if (projections == HashProjections::none) {
      add(method, 0, false, 0);
      continue;
    }
    for (const int64_t bits : bits_to_measure(mpi, config)) {
      add(method, static_cast<int>(bits), false, context);
      // The scores of planes have the keys' lengths already.
      const bool signs = !candidates.back().setup.has_planes();
      const bool learned = projections == HashProjections::learned;
      if (learned && signs && config.hash.evaluation.key_norm) {
        add(method, static_cast<int>(bits), true, 0);
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

void require_evaluation(const fs::path& path, std::string_view format, std::string_view command) {
  require_replaceable(
      {"run.dir", path}, fmt::format("an evaluation by {}", command), [&](const fs::path& old) {
        return read_file(old).find(fmt::format("\"{}\"", format)) != std::string::npos;
      });
}

void write_evaluation(MpiRuntime& mpi, const fs::path& path, const nlohmann::json& content) {
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    // File names in it may hold bytes that are not UTF-8; JSON has none, so they are replaced.
    write_durably(path,
                  content.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  });
}

}  // namespace switchyard
