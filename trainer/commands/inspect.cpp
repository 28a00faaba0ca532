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

void inspect_token_file(const std::string& path, bool verify) {
  TokenFile file(path);
  const TokenFileInfo& info = file.info();
  fmt::print("{}: {} tokens in {} documents{}\n", path, file.num_tokens(), file.num_documents(),
             info.loss_mask ? ", with a loss mask" : "");
  fmt::print("vocabulary {}, end of document {}, tokenizer {} {}, source {}\n", info.vocab_size,
             info.end_of_document, info.tokenizer, info.tokenizer_hash, info.source);
  if (!verify) return;
  file.verify();
  fmt::print("intact: every checksum matches\n");
}

// Loading always compares the checksum, also without --verify.
void inspect_hash_weights(const std::string& path) {
  const HashWeights weights = load_hash_weights(path);
  fmt::print("{}: {} bits for {} key/value heads of width {}\n", path, weights.bits,
             weights.num_kv_heads, weights.head_dim);
  fmt::print("learned on the checkpoint {} with\n", weights.checkpoint_fingerprint);
  std::istringstream settings(weights.settings);
  for (std::string line; std::getline(settings, line);) fmt::print("  {}\n", line);
  for (int layer = 0; layer < weights.num_layers; ++layer) {
    fmt::print("layer {}: {}\n", layer,
               weights.has_layer(layer)
                   ? to_string(weights.layers[static_cast<size_t>(layer)].shape())
                   : "dense");
  }
  fmt::print("intact: the checksum matches\n");
}

void inspect_file(const std::string& path, bool verify) {
  const auto folder = std::filesystem::absolute(path).parent_path();
  if (std::filesystem::exists(folder / kManifestName)) {
    fmt::print("{} is a part of this checkpoint:\n{}", path, inspect_checkpoint(folder, verify));
  } else if (is_hash_weights(path)) {
    inspect_hash_weights(path);
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
      fmt::print("{}", inspect_checkpoint(path, verify));
    } else {
      inspect_file(path, verify);
    }
  });
  return kExitDone;
}

}  // namespace switchyard
