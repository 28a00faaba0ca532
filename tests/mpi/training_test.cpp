// Whole training steps on all ranks: the bytes that they exchange, and values that are not finite.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "layers/transformer.h"
#include "mpi/mpi_test.h"
#include "optim/distributed_optimizer.h"
#include "tests/support/model_fixture.h"
#include "trainer/planning/plan.h"
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
    Bench bench(balanced(structure), {.exchange = {.deduplicate = false}});

    const StepReport report = bench.run();

    const ModelConfig& config = bench.model.config();
    EXPECT_EQ(report.metrics.exchange_bytes,
              exchange_bytes_per_step(config, kGlobalBatch * config.seq_len,
                                      bench.dist.layout().ep(), DType::f32))
        << to_string(structure);
  }
}

TEST(ExchangeTrafficTest, OfBigMacIsTheRatioOfItsTwins) {
  Bench fine_grained(balanced(Structure::fine_grained), {.exchange = {.deduplicate = false}});
  Bench bigmac(balanced(Structure::bigmac), {.exchange = {.deduplicate = false}});

  const int64_t wide = fine_grained.run().metrics.exchange_bytes,
                narrow = bigmac.run().metrics.exchange_bytes;

  const ModelConfig& config = bigmac.model.config();
  EXPECT_EQ(narrow * config.hidden, wide * config.latent);
  EXPECT_EQ(narrow > 0, test_mpi().world_size() > 1);
}

TEST(ExchangeTrafficTest, DeduplicationSendsLess) {
  Bench with(balanced(Structure::fine_grained), {.exchange = {.deduplicate = true}});
  Bench without(balanced(Structure::fine_grained), {.exchange = {.deduplicate = false}});

  const int64_t fewer = with.run().metrics.exchange_bytes,
                all = without.run().metrics.exchange_bytes;

  // Slots s and s + 1 choose neighbouring experts: on one rank, unless a rank has only one expert.
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

}  // namespace
}  // namespace switchyard
