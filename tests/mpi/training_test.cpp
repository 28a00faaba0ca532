// Whole training steps on all ranks: the bytes that they exchange, and values that are not finite.
// Evaluation, and data that differ between ranks.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <utility>

#include "layers/transformer.h"
#include "mpi/mpi_test.h"
#include "mpi/shared_folder.h"
#include "optim/distributed_optimizer.h"
#include "tests/support/error_of.h"
#include "tests/support/model_fixture.h"
#include "trainer/data/open_data.h"
#include "trainer/planning/plan.h"
#include "trainer/training/evaluation.h"
#include "trainer/training/train_step.h"

namespace switchyard {
namespace {

using test::test_mpi;

constexpr int64_t kGlobalBatch = 16;

struct Bench {
  explicit Bench(const ModelConfig& model_config, const TransformerOptions& options = {})
      : dist(test_mpi(), ParallelLayout(test_mpi().world_size(), 1, test_mpi().world_size())),
        model(stream, model_config, dist, options),
        optimizer(stream, OptimizerConfig{}, model.parameters(), dist),
        step(stream, model, optimizer, dist) {}

  StepReport run() {
    const int64_t per_rank = kGlobalBatch / dist.layout().dp();
    std::vector<MicroBatch> batches;
    batches.push_back(test::synthetic_batch(model.config(), dist.dp().rank() * per_rank, per_rank));
    return step.run(batches, test::size_of(model.config(), kGlobalBatch), 1e-2);
  }

  std::vector<std::vector<float>> values() {
    model.parameters().await_values(stream);
    std::vector<std::vector<float>> all;
    for (const Parameter& p : model.parameters().parameters()) {
      all.push_back(test::to_floats(p.value));
    }
    return all;
  }

  Stream stream;
  DistributedContext dist;
  Transformer model;
  DistributedOptimizer optimizer;
  TrainStep step;
};

ModelConfig balanced(Structure structure) {
  ModelConfig config = test::tiny_model(structure);
  config.router.top_k = 2;  // tokens * top_k is a multiple of the experts
  config.router.force_balanced = true;
  return config;
}

TEST(ExchangeTrafficTest, EqualsTheFormulaWithoutDeduplication) {
  for (const Structure structure : {Structure::fine_grained, Structure::bigmac}) {
    Bench bench(balanced(structure), {.exchange = {.deduplicate = Deduplicate::none}});

    const StepReport report = bench.run();

    const ModelConfig& config = bench.model.config();
    EXPECT_EQ(report.metrics.exchange_bytes,
              exchange_bytes_per_step(config, kGlobalBatch * config.seq_len,
                                      bench.dist.layout().ep(), DType::f32))
        << to_string(structure);
  }
}

TEST(ExchangeTrafficTest, OfBigMacIsTheRatioOfItsTwins) {
  Bench fine_grained(balanced(Structure::fine_grained),
                     {.exchange = {.deduplicate = Deduplicate::none}});
  Bench bigmac(balanced(Structure::bigmac), {.exchange = {.deduplicate = Deduplicate::none}});

  const int64_t wide = fine_grained.run().metrics.exchange_bytes,
                narrow = bigmac.run().metrics.exchange_bytes;

  const ModelConfig& config = bigmac.model.config();
  EXPECT_EQ(narrow * config.hidden, wide * config.latent);
  EXPECT_EQ(narrow > 0, test_mpi().world_size() > 1);
}

TEST(ExchangeTrafficTest, DeduplicationSendsLess) {
  const ModelConfig config = test::tiny_model(Structure::fine_grained);
  Bench with(config, {.exchange = {.deduplicate = Deduplicate::rank}});
  Bench without(config, {.exchange = {.deduplicate = Deduplicate::none}});

  const int64_t fewer = with.run().metrics.exchange_bytes,
                all = without.run().metrics.exchange_bytes;

  // Some of a token's experts lie on one rank, unless a rank has only one expert.
  if (test_mpi().world_size() > 1 && test_mpi().world_size() < 8) {
    EXPECT_LT(fewer, all);
  } else {
    EXPECT_EQ(fewer, all);
  }
}

TEST(NonFiniteTest, ANanOnOneRankSkipsTheStepOnAll) {
  Bench bench(test::tiny_model(Structure::bigmac));
  bench.run();
  const auto before = bench.values();
  float poisoned = 0.0f;
  float* weight = nullptr;
  if (bench.dist.rank() == bench.dist.world().size() - 1) {
    for (Parameter& p : bench.model.parameters().parameters()) {
      if (p.spec.group == ParameterGroup::expert) weight = p.value.data<float>();
    }
    poisoned = *weight;
    *weight = std::numeric_limits<float>::quiet_NaN();
  }
  // The expert must see a token for its NaN to matter, and all of them do in a batch of this size.

  const StepReport report = bench.run();

  EXPECT_TRUE(report.metrics.skipped);
  EXPECT_FALSE(std::isfinite(report.metrics.grad_norm));
  EXPECT_EQ(bench.optimizer.num_steps(), 1);
  if (weight) *weight = poisoned;
  EXPECT_EQ(bench.values(), before);
  EXPECT_FALSE(bench.run().metrics.skipped);
}

TEST(StopSignalTest, OneRanksWishReachesAll) {
  Bench bench(test::tiny_model(Structure::dense));
  std::vector<MicroBatch> batches;
  batches.push_back(test::synthetic_batch(bench.model.config(), bench.dist.rank(), 1));
  const bool mine = bench.dist.rank() == bench.dist.world().size() - 1;

  const StepReport report =
      bench.step.run(batches, test::size_of(bench.model.config(), bench.dist.world().size()), 1e-3,
                     /*data_ms=*/0.0, [&] { return mine; });

  EXPECT_TRUE(report.stop_requested);
}

// One document of `count` tokens for the byte tokenizer. None of them is learned with a mask of 0.
void write_tokens(const std::filesystem::path& path, int64_t count, int32_t first,
                  std::optional<uint8_t> mask, int64_t vocab_size) {
  TokenFileWriter writer(path, {.vocab_size = vocab_size,
                                .end_of_document = 0,
                                .tokenizer = "byte",
                                .tokenizer_hash = make_tokenizer({})->hash(),
                                .source = "",
                                .source_hash = "",
                                .loss_mask = mask.has_value()});
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = (first + static_cast<int32_t>(i)) % 37;
  writer.append_document(tokens,
                         std::vector<uint8_t>(mask ? tokens.size() + 1 : 0, mask.value_or(0)));
  writer.finish();
}

// Each rank sees a file of its own under the same name, as on machines without a shared disk. The
// tokens are the same, so that only the masks tell.
TEST(OpenDataTest, LossMasksThatDifferBetweenRanksAreAnErrorOnAllOfThem) {
  if (test_mpi().world_size() == 1) GTEST_SKIP() << "one rank has one mask";
  const test::SharedFolder folder;
  const int last = test_mpi().world_size() - 1;
  RunConfig config;
  config.model.seq_len = 4;
  config.train.global_batch_size = kGlobalBatch;
  const auto path = folder.path() / fmt::format("own{}.h5", test_mpi().rank());
  const auto open = [&](uint8_t mask_of_last, bool as_validation) {
    write_tokens(path, 40, 1, test_mpi().rank() == last ? mask_of_last : 1, 257);
    config.data.train = {{path.string()}};
    config.data.validation.clear();
    if (as_validation) std::swap(config.data.train, config.data.validation);
    return test::error_of([&] {
      open_data(test_mpi(), config, as_validation ? NeedsTraining::no : NeedsTraining::yes);
    });
  };

  for (const bool as_validation : {false, true}) {
    EXPECT_EQ(open(1, as_validation), "");
    EXPECT_THAT(open(0, as_validation),
                testing::HasSubstr(fmt::format(
                    ".h5 of rank {} is another one than that of rank 0: give all machines the "
                    "same file",
                    last)));
  }
}

TEST(EvaluationTest, AFileWithoutTargetsHasNoLossAndAddsNothingToTheOthers) {
  Bench bench(test::tiny_model(Structure::dense));
  const test::SharedFolder folder;
  const auto own = [&](const char* name) {
    return folder.path() / fmt::format("{}{}.h5", name, test_mpi().rank());
  };
  write_tokens(own("silent"), 100, 5, 0, 37);
  write_tokens(own("text"), 150, 1, std::nullopt, 37);
  TokenFile silent(own("silent")), text(own("text"));
  const ParallelLayout& layout = bench.dist.layout();
  const DataLoaderConfig shape{.seq_len = bench.model.config().seq_len,
                               .vocab_size = 37,
                               .micro_batch_size = 1,
                               .global_batch_size = kGlobalBatch,
                               .mask = AttentionMask::causal,
                               .seed = 0,
                               .dp_rank = layout.dp_rank(test_mpi().rank()),
                               .dp = layout.dp()};
  const auto evaluate_on = [&](const std::vector<SourceFile>& files) {
    ValidationLoader loader(files, shape);
    return evaluate(bench.step, loader, /*max_batches=*/100, test_mpi().world());
  };

  const EvaluationResult none = evaluate_on({{&silent, 1.0, "silent"}});
  const EvaluationResult alone = evaluate_on({{&text, 1.0, "text"}});
  const EvaluationResult both = evaluate_on({{&silent, 1.0, "silent"}, {&text, 1.0, "text"}});

  EXPECT_TRUE(std::isnan(none.loss));
  EXPECT_EQ(none.tokens, 0);
  EXPECT_GT(alone.loss, 0.0);
  EXPECT_EQ(alone.tokens, 150);
  EXPECT_EQ(both.loss, alone.loss);
  EXPECT_EQ(both.tokens, 150);
  ASSERT_EQ(both.file_losses.size(), 2u);
  EXPECT_TRUE(std::isnan(both.file_losses[0].second));
  EXPECT_EQ(both.file_losses[1].second, alone.loss);
}

}  // namespace
}  // namespace switchyard
