#include "tests/fuzz/samples.h"

#include <zlib.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/shard.h"
#include "trainer/data/token_file.h"
#include "trainer/data/tokenizer.h"
#include "trainer/files/durable_file.h"
#include "trainer/hashing/hash_weights.h"
#include "trainer/hashing/head_file.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard::fuzz {

void write_checkpoint(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  std::vector<float> values(32);
  std::iota(values.begin(), values.end(), 1.0f);
  const std::span all(values);
  Manifest manifest{.state = {.step = 7,
                              .optimizer_steps = 6,
                              .skipped_steps = 1,
                              .samples_consumed = 56,
                              .tokens = 448,
                              .dataset_fingerprint = "0123456789abcdef",
                              .config = "model:\n  hidden: 8\n",
                              .tokenizer_hash = "fedcba9876543210"},
                    .layout = {.world_size = 2, .tp = 2, .ep = 1},
                    .model_fingerprint = {},
                    .shards = {},
                    .model_file = {}};
  for (const int64_t rank : {0, 1}) {
    // Columns of a matrix are split over the ranks, and the elements of a vector.
    const TensorPiece pieces[] = {
        {kWeights, "a.weight", {{4, 6}, {0, 3 * rank}, {4, 3}, 0, 12}, all.first(12)},
        {kWeights, "b.weight", {{5}, {0}, {5}, 3 * rank, 3 + 2 * rank}, all.first(3 - rank)}};
    manifest.shards.push_back(
        write_shard(folder / shard_name(static_cast<int>(rank)), std::span(pieces)));
  }
  manifest.model_fingerprint = model_fingerprint(tensors_of(manifest.shards));
  manifest.model_file = write_model_file(folder / kModelFileName, manifest);
  write_durably(folder / kManifestName, to_text(manifest));
}

void write_token_file(const std::filesystem::path& path, bool loss_mask) {
  TokenFileWriter writer(path, {.vocab_size = 257,
                                .end_of_document = 256,
                                .tokenizer = "byte",
                                .tokenizer_hash = "0123456789abcdef",
                                .source = "docs",
                                .source_hash = "fedcba9876543210",
                                .loss_mask = loss_mask});
  const int32_t tokens[] = {72, 101, 108, 108, 111};
  const uint8_t mask[] = {0, 0, 1, 1, 1, 1};
  for (int document = 0; document < 3; ++document) {
    writer.append_document(tokens, std::span(mask).first(loss_mask ? 6 : 0));
  }
  writer.finish();
}

void write_hash_weights(const std::filesystem::path& path) {
  HashWeights weights{.bits = 64,
                      .head_dim = 4,
                      .num_kv_heads = 2,
                      .num_layers = 3,
                      .checkpoint_fingerprint = "0123456789abcdef",
                      .settings = "sigma: 0.1\n",
                      .layers = std::vector<HashTensors>(3)};
  for (size_t layer = 1; layer < 3; ++layer) {
    weights.layers[layer] = {.keys = Tensor({2, 4, 32}, DType::f32),
                             .queries = Tensor({2, 4, 32}, DType::f32),
                             .thresholds = Tensor({2, 32}, DType::f32),
                             .key_planes = 2};
  }
  save_hash_weights(path, weights);
}

void write_head(const std::filesystem::path& path) {
  HeadResult result;
  result.hash.keys = Tensor({1, 4, 32}, DType::f32);
  result.losses.push_back({0.0, 0.5, 0.25, 0.125, 0.0625});
  result.held_out = {{"learned", {}}, {"random", {}}};
  save_head(path, "key", result);
}

void write_query_keys(const std::filesystem::path& path) {
  QueryKeyWriter writer(path, "key", /*first_sequence=*/0, /*queries_per_sequence=*/1,
                        {{0, 2}, {2, 5}});
  Tensor q({4, 2, 4}, DType::f32), k({2, 5, 4}, DType::f32);
  writer.write_layer(0, q, k);
  writer.finish();
}

void write_tokenizer(const std::filesystem::path& path) {
  std::istringstream text(
      "the cat sat on the mat and the rat sat on the cat\n"
      "a token is a piece of a text and a text is a list of tokens\n");
  train_sentencepiece(
      [&]() -> std::optional<std::string> {
        std::string line;
        if (!std::getline(text, line)) return std::nullopt;
        return line;
      },
      290, path);
}

void write_gzip(const std::filesystem::path& path, const std::string& text) {
  gzFile file = gzopen(path.c_str(), "wb");
  require(file != nullptr, "cannot write {}", path.string());
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
}

}  // namespace switchyard::fuzz
