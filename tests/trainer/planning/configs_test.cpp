// Every file of configs/ can be read, is valid for a suitable number of ranks and can be planned.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "trainer/config/config_reader.h"
#include "trainer/planning/plan.h"
#include "trainer/recall/recall_task.h"

namespace switchyard {
namespace {

const std::filesystem::path kConfigs = std::filesystem::path(SWITCHYARD_SOURCE_DIR) / "configs";

LoadedConfig load(const std::string& name) {
  LoadedConfig loaded = load_config((kConfigs / (name + ".yaml")).string(), {});
  int64_t& vocab_size = loaded.config.model.vocab_size;
  if (vocab_size == 0) vocab_size = 257;  // 256 bytes and the end of a document
  return loaded;
}

Plan plan_of(const std::string& name) {
  const RunConfig config = load(name).config;
  const int ranks = std::lcm(config.parallel.tp, config.parallel.ep);
  return make_plan(config, ParallelLayout(ranks, config.parallel.tp, config.parallel.ep));
}

// The files of configs/ except those that are only the base of others.
std::vector<std::string> experiments() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kConfigs)) {
    const std::string name = entry.path().stem().string();
    if (entry.path().extension() == ".yaml" && !name.ends_with("_base")) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

class EveryConfigTest : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryConfigTest, IsReadAcceptedAndPlanned) {
  const LoadedConfig loaded = load(GetParam());
  const ParallelSection& parallel = loaded.config.parallel;
  const int ranks = std::lcm(parallel.tp, parallel.ep);

  validate_config(loaded, ranks, recall_problems(loaded.config));
  const Plan plan = make_plan(loaded.config, ParallelLayout(ranks, parallel.tp, parallel.ep));

  EXPECT_GT(plan.parameters.total, 0);
  EXPECT_LE(plan.parameters.active, plan.parameters.total);
  EXPECT_GT(plan.step_flops, 0.0);
  EXPECT_GT(plan.memory.activations.saved, 0);
  EXPECT_EQ(plan.exchange_bytes > 0, parallel.ep > 1);
  EXPECT_NE(describe_plan(plan, loaded.config).find("memory of a rank"), std::string::npos);
}

TEST_P(EveryConfigTest, KeepsItsRunInAFolderOfItsOwn) {
  std::vector<std::string> others = experiments();
  std::erase(others, GetParam());

  for (const std::string& other : others) {
    EXPECT_NE(load(GetParam()).config.run.dir, load(other).config.run.dir) << other;
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, EveryConfigTest, ::testing::ValuesIn(experiments()),
                         [](const auto& tested) { return tested.param; });

TEST(ConfigsTest, TheFolderIsNotEmpty) { EXPECT_GE(experiments().size(), 14u); }

class ComparedConfigsTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ComparedConfigsTest, TheThreeStructuresHaveEqualBudgets) {
  std::vector<int64_t> totals;
  for (const char* structure : {"_vanilla", "_fine_grained", "_bigmac"}) {
    totals.push_back(plan_of(GetParam() + structure).parameters.total);
  }

  const auto [least, most] = std::minmax_element(totals.begin(), totals.end());
  EXPECT_LE(static_cast<double>(*most), 1.02 * static_cast<double>(*least));
}

TEST_P(ComparedConfigsTest, BigmacExchangesAQuarterOfItsTwin) {
  EXPECT_EQ(4 * plan_of(GetParam() + "_bigmac").exchange_bytes,
            plan_of(GetParam() + "_fine_grained").exchange_bytes);
}

TEST_P(ComparedConfigsTest, TheTwinsHaveExpertsOfEqualSize) {
  EXPECT_EQ(plan_of(GetParam() + "_bigmac").parameters.routed_experts,
            plan_of(GetParam() + "_fine_grained").parameters.routed_experts);
}

INSTANTIATE_TEST_SUITE_P(Configs, ComparedConfigsTest,
                         ::testing::Values("quickstart", "gpt3_medium", "gpt3_xl"),
                         [](const auto& tested) { return tested.param; });

// arXiv 2401.06066, section 5.1: 16.4 B parameters, about 2.8 B of them active.
TEST(ConfigsTest, DeepseekMoeHasItsPapersSize) {
  const ParameterCounts count = plan_of("deepseek_moe_16b").parameters;

  EXPECT_NEAR(static_cast<double>(count.total) * 1e-9, 16.4, 0.05);
  EXPECT_NEAR(static_cast<double>(count.active) * 1e-9, 2.8, 0.05);
}

}  // namespace
}  // namespace switchyard
