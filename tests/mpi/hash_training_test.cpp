// train-hash on all ranks: any number of ranks gives the same weights, and an interrupted training
// goes on from its files.
#include "trainer/hashing/hash_training.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>

#include "mpi/mpi_test.h"
#include "mpi/shared_folder.h"
#include "tests/support/error_of.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temporary_folder.h"
#include "trainer/data/token_file.h"
#include "trainer/hashing/hash_weights.h"
#include "trainer/hashing/random_projection.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::SharedFolder;
using test::test_mpi;

constexpr char kFingerprint[] = "00112233445566aa";

void write_tokens(const fs::path& path, int64_t vocab_size, const std::string& tokenizer_hash) {
  TokenFileWriter writer(path, {.vocab_size = vocab_size,
                                .end_of_document = 0,
                                .tokenizer = "byte",
                                .tokenizer_hash = tokenizer_hash,
                                .source = "test",
                                .source_hash = ""});
  std::mt19937 engine(5);
  for (int document = 0; document < 40; ++document) {
    std::vector<int32_t> tokens(30);
    for (int32_t& token : tokens) {
      token = static_cast<int32_t>(1 + engine() % static_cast<uint32_t>(vocab_size - 1));
    }
    writer.append_document(tokens);
  }
  writer.finish();
}

void wait_for_all() {
  Stream stream;
  test_mpi().world().barrier(stream);
}

// A configuration of few steps in a folder that all ranks see.
class HashTrainingTest : public testing::TestWithParam<HashObjectiveKind> {
 protected:
  HashTrainingTest() {
    config_.run.dir = (folder_.path() / "run").string();
    config_.run.seed = 11;
    config_.model = test::tiny_model(Structure::dense);
    config_.model.num_kv_heads = 2;
    config_.model.num_layers = 3;
    config_.model.seq_len = 32;
    config_.train.micro_batch_size = 2;
    config_.data.train = {{(folder_.path() / "train.h5").string()}};
    config_.data.validation = {{(folder_.path() / "validation.h5").string()}};
    config_.hash.bits = 32;
    config_.hash.dense_layers = 1;
    config_.hash.training.objective = GetParam();
    config_.hash.training.ranking.steps = 12;
    config_.hash.training.queries = GetParam() == HashObjectiveKind::paper ? 1 : 5;
    config_.hash.training.num_sequences = 9;
    config_.hash.training.held_out_sequences = 5;
    config_.hash.training.sigma = 1.0;
    config_.hash.training.balance_weight = 0.1;
    config_.hash.training.epochs = 3;
    config_.hash.training.iterations = 4;
    config_.hash.training.pairs_per_epoch = 150;
    run_collectively(test_mpi().world(), [&] {
      if (test_mpi().rank() != 0) return;
      for (const auto& sources : {config_.data.train, config_.data.validation}) {
        write_tokens(sources[0].path, config_.model.vocab_size, tokenizer_->hash());
      }
    });
  }

  void train(const RunConfig& config, const std::string& fingerprint = kFingerprint) {
    Session session(test_mpi(), config);
    EXPECT_TRUE(HashTraining(test_mpi(), config, *tokenizer_, session, fingerprint).run());
  }

  // The bytes of the result files.
  struct Files {
    std::string weights, metrics;
  };
  Files files_of(const RunConfig& config) const {
    Files files;
    run_collectively(test_mpi().world(), [&] {
      files = {test::read_file(hash_weights_path(config, config.hash.bits)),
               test::read_file(fs::path(config.run.dir) / "hash" / "metrics.jsonl")};
    });
    return files;
  }

  SharedFolder folder_;
  RunConfig config_;
  std::unique_ptr<Tokenizer> tokenizer_ = make_tokenizer({});
};

TEST_P(HashTrainingTest, AnyNumberOfRanksLearnsTheSameBits) {
  train(config_);
  const Files all = files_of(config_);

  // Now every rank trains alone, as a world of one.
  const HashWeights weights = load_hash_weights(hash_weights_path(config_, config_.hash.bits));
  const fs::path own = folder_.path() / std::to_string(test_mpi().rank());
  const QueryKeySet set{.folder = own,
                        .name = "train",
                        .key = "own",
                        .seed = config_.run.seed,
                        .num_sequences = 9,
                        .sequences_per_block = 2,
                        .queries_per_sequence = config_.hash.training.queries,
                        .spread = GetParam() == HashObjectiveKind::ranking
                                      ? QuerySpread{.from = 1.0 / 16, .by_octave = true}
                                      : QuerySpread{},
                        .first_layer = 1};
  DistributedContext alone;
  Stream stream;
  Transformer model(stream, config_.model, alone, {.seed = config_.run.seed, .exchange = {}});
  TokenFile file(config_.data.train[0].path);
  DataLoader loader(file, {.seq_len = 32,
                           .vocab_size = config_.model.vocab_size,
                           .micro_batch_size = 2,
                           .global_batch_size = 2,
                           .mask = config_.data.mask,
                           .seed = config_.run.seed,
                           .dp_rank = 0,
                           .dp = 1});
  collect_query_keys(stream, model, alone, loader, set);
  for (int layer = 1; layer < 3; ++layer) {
    for (int head = 0; head < 2; ++head) {
      const HeadResult result = train_head({.training = set,
                                            .held_out = nullptr,
                                            .layer = layer,
                                            .kv_head = head,
                                            .bits = 32,
                                            .size = size_of_set(set)},
                                           config_.hash.training);
      for (const auto tensor :
           {&HashTensors::keys, &HashTensors::queries, &HashTensors::thresholds}) {
        const Tensor& all_heads = weights.layers[static_cast<size_t>(layer)].*tensor;
        ASSERT_EQ(bool(all_heads), bool(result.hash.*tensor));
        if (!all_heads) continue;
        const ConstTensorView learned = all_heads.view().rows(head, 1);
        EXPECT_EQ(std::memcmp((result.hash.*tensor).data<float>(), learned.data<float>(),
                              learned.num_bytes()),
                  0)
            << "layer " << layer << " head " << head;
      }
    }
  }
  EXPECT_FALSE(all.metrics.empty());
}

TEST_P(HashTrainingTest, ChangesTheProjections) {
  train(config_);

  const HashWeights learned = load_hash_weights(hash_weights_path(config_, config_.hash.bits));
  config_.hash.training.ranking.steps = 0;
  config_.run.dir += "_closed_form";
  if (GetParam() == HashObjectiveKind::ranking) train(config_);
  // What learning begins with.
  const HashWeights start =
      GetParam() == HashObjectiveKind::ranking
          ? load_hash_weights(hash_weights_path(config_, config_.hash.bits))
          : random_hash_weights(11, HashInit::orthogonal, config_.model, 32, 1);
  EXPECT_EQ(learned.has_planes(), GetParam() == HashObjectiveKind::ranking);
  EXPECT_EQ(learned.checkpoint_fingerprint, kFingerprint);
  EXPECT_FALSE(learned.has_layer(0));
  for (size_t layer = 1; layer < 3; ++layer) {
    ASSERT_EQ(learned.layers[layer].keys.shape(), start.layers[layer].keys.shape());
    EXPECT_NE(std::memcmp(learned.layers[layer].keys.data<float>(),
                          start.layers[layer].keys.data<float>(),
                          start.layers[layer].keys.view().num_bytes()),
              0);
  }
  EXPECT_FALSE(fs::exists(fs::path(config_.run.dir) / "hash" / "query_keys"));
  EXPECT_FALSE(fs::exists(fs::path(config_.run.dir) / "hash" / "heads"));
}

// Files of an interrupted training are missing or torn: the weights, two blocks of queries and
// keys, the metrics.
TEST_P(HashTrainingTest, WhatAKilledTrainingLeftIsTakenUpBitForBit) {
  config_.hash.training.keep_query_keys = true;
  train(config_);
  const Files straight = files_of(config_);
  run_collectively(test_mpi().world(), [&] {
    if (test_mpi().rank() != 0) return;
    const fs::path hash = fs::path(config_.run.dir) / "hash";
    fs::remove(hash_weights_path(config_, config_.hash.bits));
    fs::remove(hash / "query_keys" / "train_000001.h5");
    const fs::path block = hash / "query_keys" / "train_000002.h5";
    test::write_file(block, test::read_file(block).substr(0, 700));
    test::write_file(hash / "metrics.jsonl", "{\"layer\": 1, \"torn");
  });

  train(config_);

  const Files resumed = files_of(config_);
  EXPECT_EQ(resumed.weights, straight.weights);
  EXPECT_EQ(resumed.metrics, straight.metrics);
}

// Experts that are spread over the ranks take their rows from all of them, so the other blocks of a
// missing one's group decide its last bits.
TEST_P(HashTrainingTest, ABlockThatIsMadeAgainOverSpreadExpertsHasTheSameBytes) {
  config_.model = test::tiny_model(Structure::bigmac);
  config_.model.num_layers = 3;
  config_.model.seq_len = 32;
  config_.parallel.ep = test_mpi().world().size();
  config_.hash.training.keep_query_keys = true;
  train(config_);
  const fs::path folder = fs::path(config_.run.dir) / "hash" / "query_keys";
  std::vector<std::pair<fs::path, std::string>> straight;
  for (int block = 0; block < 5; ++block) {
    const fs::path path = folder / fmt::format("train_{:06d}.h5", block);
    straight.emplace_back(path, test::read_file(path));
  }

  for (const auto& [path, bytes] : straight) {
    wait_for_all();
    if (test_mpi().rank() == 0) {
      fs::remove(path);
      fs::remove(hash_weights_path(config_, config_.hash.bits));
    }
    wait_for_all();
    train(config_);
    EXPECT_TRUE(test::read_file(path) == bytes) << path;
  }
}

TEST_P(HashTrainingTest, FinishedWeightsAreLearnedAgainForOtherSettingsOnly) {
  train(config_);
  const auto written = fs::last_write_time(hash_weights_path(config_, config_.hash.bits));
  wait_for_all();
  train(config_);
  EXPECT_EQ(fs::last_write_time(hash_weights_path(config_, config_.hash.bits)), written);
  wait_for_all();

  train(config_, "another checkpoint");

  EXPECT_EQ(load_hash_weights(hash_weights_path(config_, config_.hash.bits)).checkpoint_fingerprint,
            "another checkpoint");
}

TEST_P(HashTrainingTest, ATrainingThatDivergesIsAnErrorThatLeavesWeightsMetricsAndHeads) {
  train(config_);
  const Files before = files_of(config_);
  RunConfig fast = config_;
  fast.hash.training.lr = 1e3;
  fast.hash.training.weight_decay = 1e3;
  if (GetParam() == HashObjectiveKind::ranking) {
    // Steps of relative length 1 do not diverge by themselves.
    fast.hash.training.ranking.lr = 1e30;
  }

  const std::string error = test::error_of([&] { train(fast); });

  const bool ranks = GetParam() == HashObjectiveKind::ranking;
  EXPECT_THAT(error, testing::ContainsRegex(
                         fmt::format("layer [12] head [01]: learning diverged: after {} the loss "
                                     "is -?(nan|inf) and the projection holds",
                                     ranks ? "12 steps" : "epoch [123] of 3")));
  EXPECT_THAT(error, testing::HasSubstr(ranks ? "lower hash.training.ranking.lr (it is 1e+30) and"
                                              : "lower hash.training.lr (it is 1000) and run"));
  wait_for_all();
  const Files after = files_of(config_);
  EXPECT_EQ(after.weights, before.weights);
  EXPECT_EQ(after.metrics, before.metrics);
  const fs::path heads = fs::path(config_.run.dir) / "hash" / "heads";
  EXPECT_EQ(std::distance(fs::directory_iterator(heads), {}), 0);
}

TEST_P(HashTrainingTest, AModelThatDivergedIsAnErrorThatNamesLayerAndSequence) {
  Session session(test_mpi(), config_);
  const auto norm =
      std::ranges::find(session.model.parameters().parameters(), "layers.1.norm1.weight",
                        [](const Parameter& p) { return p.spec.name; });
  norm->value.data<float>()[0] = std::numeric_limits<float>::infinity();

  HashTraining training(test_mpi(), config_, *tokenizer_, session, kFingerprint);

  const std::string error = test::error_of([&] { (void)training.run(); });

  EXPECT_THAT(error,
              testing::ContainsRegex("layer 1, sequence [0-9] of the text to learn from: the "
                                     "queries of head 0 hold .*(NaN|infinit)"));
  EXPECT_FALSE(fs::exists(hash_weights_path(config_, config_.hash.bits)));
}

TEST_P(HashTrainingTest, QueriesThatSeeOneKeyTeachNothing) {
  config_.hash.training.seq_len = 1;

  EXPECT_THAT(test::error_of([&] { train(config_); }),
              testing::HasSubstr("sees its own key alone, so no key is dissimilar"));
}

TEST_P(HashTrainingTest, TokensOfAnotherTokenizerAreAnErrorWhicheverKeyNamesThem) {
  const fs::path other = folder_.path() / "other.h5";
  run_collectively(test_mpi().world(), [&] {
    if (test_mpi().rank() == 0) write_tokens(other, config_.model.vocab_size, "0123456789abcdef");
  });
  RunConfig in_training = config_, in_tokens = config_, in_validation = config_;
  in_training.data.train = {{other.string()}};
  in_tokens.hash.training.tokens = other.string();
  in_validation.data.validation = {{other.string()}};

  for (const RunConfig& config : {in_training, in_tokens, in_validation}) {
    EXPECT_THAT(test::error_of([&] { train(config); }),
                testing::AllOf(testing::HasSubstr("other.h5 was made with the byte tokenizer "
                                                  "0123456789abcdef, data.tokenizer is"),
                               testing::HasSubstr(tokenizer_->hash())));
  }
}

// Each rank sees a file of its own under the same name, as on machines without a shared disk.
TEST_P(HashTrainingTest, TokensThatDifferBetweenRanksAreAnErrorOnAllOfThem) {
  if (test_mpi().world_size() == 1) GTEST_SKIP() << "one rank has one file";
  const fs::path own = folder_.path() / fmt::format("own{}.h5", test_mpi().rank());
  const bool is_last = test_mpi().rank() == test_mpi().world_size() - 1;
  write_tokens(own, config_.model.vocab_size - (is_last ? 1 : 0), tokenizer_->hash());
  RunConfig in_training = config_, in_validation = config_;
  in_training.data.train = {{own.string()}};
  in_validation.data.validation = {{own.string()}};

  for (const RunConfig& config : {in_training, in_validation}) {
    EXPECT_THAT(test::error_of([&] { train(config); }),
                testing::HasSubstr(fmt::format("of rank {} is another one than that of rank 0",
                                               test_mpi().world_size() - 1)));
  }
}

TEST_P(HashTrainingTest, NothingToLearnIsAnErrorOnEveryRank) {
  config_.hash.dense_layers = 3;

  EXPECT_THAT(test::error_of([&] { train(config_); }), testing::HasSubstr("hash.dense_layers = 3"));
}

INSTANTIATE_TEST_SUITE_P(Objectives, HashTrainingTest,
                         testing::Values(HashObjectiveKind::paper, HashObjectiveKind::ranking),
                         [](const auto& of) { return std::string(to_string(of.param)); });

}  // namespace
}  // namespace switchyard
