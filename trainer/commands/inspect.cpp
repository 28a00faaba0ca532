#include "trainer/checkpoint/inspect.h"

#include <fmt/format.h>

#include <filesystem>
#include <sstream>
#include <string>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/data/token_file.h"
#include "trainer/hashing/hash_weights.h"

namespace switchyard {
namespace {

// Prints what a checkpoint or hash weights hold. Success would say that they can be used.
void report(const std::string& path, const Inspection& inspection) {
  fmt::print("{}", inspection.text);
  require(inspection.not_finite.total() == 0,
          "{}: every checksum matches, but it holds {}: training had diverged when it was written; "
          "use an earlier one",
          path, describe(inspection.not_finite));
}

void inspect_token_file(const std::string& path, bool verify) {
  TokenFile file(path);
  const TokenFileInfo& info = file.info();
  fmt::print("{}: {} tokens in {} documents{}\n", path, file.num_tokens(), file.num_documents(),
             info.loss_mask ? ", with a loss mask" : "");
  fmt::print("vocabulary {}, end of document {}, tokenizer {} {}, source {}\n", info.vocab_size,
             info.end_of_document, info.tokenizer, info.tokenizer_hash, info.source);
  if (!verify) {
    fmt::print(
        "only the attributes and the document offsets were read; --verify reads every token\n");
    return;
  }
  file.verify();
  fmt::print("intact: every checksum matches\n");
}

// They are always read and checked as a whole, also without --verify.
Inspection inspect_hash_weights(const std::string& path) {
  const HashWeights weights = read_hash_weights(path);
  Inspection result{.text = fmt::format("{}: {} bits for {} key/value heads of width {}\n"
                                        "learned on the checkpoint {} with\n",
                                        path, weights.bits, weights.num_kv_heads, weights.head_dim,
                                        weights.checkpoint_fingerprint),
                    .not_finite = {}};
  std::istringstream settings(weights.settings);
  for (std::string line; std::getline(settings, line);) result.text += "  " + line + '\n';
  for (int layer = 0; layer < weights.num_layers; ++layer) {
    result.text += fmt::format("layer {}: ", layer);
    if (!weights.has_layer(layer)) {
      result.text += "dense\n";
      continue;
    }
    const NotFinite count = count_not_finite(weights, layer);
    const HashTensors& layers = weights.layers[static_cast<size_t>(layer)];
    result.text += to_string(layers.keys.shape());
    if (layers.queries) {
      result.text +=
          fmt::format(" for keys ({} of each column) and for queries, with thresholds",
                      layers.key_planes == 1 ? "a bit" : fmt::format("{} bits", layers.key_planes));
    }
    if (count.total() > 0) result.text += "  " + describe(count);
    result.text += '\n';
    result.not_finite += count;
  }
  result.text += describe_verified(result.not_finite);
  return result;
}

void inspect_file(const std::string& path, bool verify) {
  const auto folder = std::filesystem::absolute(path).parent_path();
  if (std::filesystem::exists(folder / kManifestName)) {
    fmt::print("{} is a part of this checkpoint:\n", path);
    report(folder, inspect_checkpoint(folder, verify));
  } else if (is_hash_weights(path)) {
    report(path, inspect_hash_weights(path));
  } else if (is_token_file(path)) {
    inspect_token_file(path, verify);
  } else {
    fail("{} is no file that can be shown: name a token file, hash weights, a checkpoint or a run",
         path);
  }
}

}  // namespace

int inspect_command(MpiRuntime& mpi, const std::string& path, bool verify) {
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    require(std::filesystem::exists(path), "{} does not exist", path);
    if (std::filesystem::is_directory(path)) {
      report(path, inspect_checkpoint(path, verify));
    } else {
      inspect_file(path, verify);
    }
  });
  return kExitDone;
}

}  // namespace switchyard
