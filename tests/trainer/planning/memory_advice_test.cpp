#include "trainer/planning/memory_advice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "tests/support/model_fixture.h"
#include "trainer/planning/plan.h"

namespace switchyard {
namespace {

using test::tiny_model;
using testing::HasSubstr;
using testing::Not;

RunConfig config_of(const std::function<void(RunConfig&)>& change = [](RunConfig&) {}) {
  RunConfig config;
  config.run.dir = "run";
  config.model = tiny_model(Structure::bigmac);
  config.model.seq_len = 256;
  config.train.micro_batch_size = 6;
  config.train.global_batch_size = 24;
  change(config);
  return config;
}

int64_t needs(const RunConfig& config, int ranks) {
  return make_plan(config, ParallelLayout(ranks, config.parallel.tp, config.parallel.ep))
      .memory.total();
}

TEST(MemoryAdviceTest, NamesTheLargestMicroBatchThatFitsAndDividesTheGlobalBatch) {
  // 5 does not divide 24, so 4 is the largest.
  const int64_t four = needs(config_of([](RunConfig& c) { c.train.micro_batch_size = 4; }), 1);
  const int64_t three = needs(config_of([](RunConfig& c) { c.train.micro_batch_size = 3; }), 1);

  EXPECT_THAT(advise_on_memory(config_of(), 1, needs(config_of(), 1) - 1),
              HasSubstr("train.micro_batch_size=4 (" + format_bytes(four) + ")"));
  EXPECT_THAT(advise_on_memory(config_of(), 1, four),
              HasSubstr("train.micro_batch_size=4 (" + format_bytes(four) + ")"));
  EXPECT_THAT(advise_on_memory(config_of(), 1, four - 1),
              HasSubstr("train.micro_batch_size=3 (" + format_bytes(three) + ")"));
}

TEST(MemoryAdviceTest, NamesRecomputationWhereItHelps) {
  const RunConfig recomputed = config_of([](RunConfig& c) { c.parallel.recompute = true; });
  const int64_t least = needs(recomputed, 1);

  EXPECT_THAT(advise_on_memory(config_of(), 1, least),
              HasSubstr("parallel.recompute=true (" + format_bytes(least) + ")"));
  EXPECT_THAT(advise_on_memory(config_of(), 1, least - 1),
              Not(HasSubstr("parallel.recompute=true (")));
  EXPECT_THAT(advise_on_memory(recomputed, 1, least - 1), Not(HasSubstr("recompute")));
}

TEST(MemoryAdviceTest, CombinesRecomputationWithASmallerMicroBatchWhereNeitherFitsAlone) {
  const auto both = config_of([](RunConfig& c) {
    c.parallel.recompute = true;
    c.train.micro_batch_size = 1;
  });
  ASSERT_LT(needs(both, 1),
            needs(config_of([](RunConfig& c) { c.train.micro_batch_size = 1; }), 1));

  EXPECT_THAT(advise_on_memory(config_of(), 1, needs(both, 1)),
              HasSubstr("these would fit: parallel.recompute=true train.micro_batch_size=1 ("));
}

TEST(MemoryAdviceTest, NamesRanksThatShareTheExperts) {
  const auto wide = [](int ep) {
    return config_of([ep](RunConfig& c) {
      c.model.num_experts = 64;
      c.model.expert_ffn_hidden = 4096;
      c.train.micro_batch_size = 1;
      c.train.global_batch_size = 64;
      c.parallel.recompute = true;
      c.parallel.ep = ep;
    });
  };
  ASSERT_GT(needs(wide(1), 1024), needs(wide(4), 4));  // replicas alone do not save enough

  const std::string advice = advise_on_memory(wide(1), 1, needs(wide(4), 4));

  EXPECT_THAT(advice, HasSubstr("these would fit: 4 ranks with parallel.ep=4 (" +
                                format_bytes(needs(wide(4), 4)) + ")"));
}

TEST(MemoryAdviceTest, SaysSoWhereNothingFits) {
  const std::string advice = advise_on_memory(config_of(), 1, 1 << 20);

  EXPECT_THAT(advice, HasSubstr("and has 1.00 MiB; only a smaller model"));
}

TEST(MemoryAdviceTest, SaysThatSomethingElseTakesTheMemoryWhereThePlanFits) {
  const std::string advice = advise_on_memory(config_of(), 1, needs(config_of(), 1));

  EXPECT_THAT(advice, HasSubstr("something else uses the device"));
  EXPECT_THAT(advice, Not(HasSubstr("these would fit")));
}

// The libraries and stacks of the program are in host memory, not on the device.
TEST(MemoryAdviceTest, ADeviceHoldsTensorsAndCublas) {
  RunConfig config = config_of();
  EXPECT_EQ(make_plan(config, ParallelLayout(1, 1, 1)).memory.program, int64_t{60} << 20);
  config.run.device = "cuda";
  EXPECT_EQ(make_plan(config, ParallelLayout(1, 1, 1)).memory.program, int64_t{33} << 20);
}

}  // namespace
}  // namespace switchyard
