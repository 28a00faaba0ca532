#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/temporary_folder.h"
#include "trainer/config/config_error.h"
#include "trainer/config/config_reader.h"
#include "trainer/recall/recall_task.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Lines = std::vector<std::string>;

constexpr const char* kMoeYaml =
    "run: {dir: runs/x}\n"
    "model:\n"
    "  structure: bigmac\n"
    "  seq_len: 16\n"
    "  hidden: 32\n"
    "  num_layers: 2\n"
    "  num_heads: 4\n"
    "  num_experts: 8\n"
    "  expert_ffn_hidden: 32\n"
    "  latent: 8\n"
    "  num_shared_experts: 1\n"
    "  shared_expert_ffn_hidden: 16\n"
    "  router: {top_k: 2}\n"
    "train: {global_batch_size: 8}\n";

// The problems of the configuration above with these overrides on `world_size` ranks.
Lines problems_with(const std::vector<std::string>& overrides, int world_size = 1) {
  test::TemporaryFolder folder;
  const auto path = folder.path() / "run.yaml";
  test::write_file(path, kMoeYaml);
  const LoadedConfig loaded = load_config(path.string(), overrides);
  try {
    validate_config(loaded, world_size, recall_problems(loaded.config));
  } catch (const ConfigError& error) {
    return error.lines();
  }
  return {};
}

const std::vector<std::string> kDense = {"model.structure=dense", "model.ffn_hidden=64"};
Lines problems_with_dense(std::vector<std::string> overrides, int world_size = 1) {
  overrides.insert(overrides.begin(), kDense.begin(), kDense.end());
  return problems_with(overrides, world_size);
}

auto names(const std::string& key, const std::string& text) {
  return AllOf(HasSubstr(": " + key + ": "), HasSubstr(text));
}

TEST(ValidateConfigTest, AcceptsWhatWorks) {
  EXPECT_THAT(problems_with({}), ElementsAre());
  EXPECT_THAT(problems_with({"parallel.tp=2", "parallel.ep=8"}, 8), ElementsAre());
  EXPECT_THAT(problems_with_dense({}), ElementsAre());
}

TEST(ValidateConfigTest, NamesMissingSizes) {
  const LoadedConfig empty = parse_config("", "run.yaml");

  try {
    validate_config(empty, 1);
    FAIL() << "an empty configuration was accepted";
  } catch (const ConfigError& error) {
    EXPECT_THAT(
        error.lines(),
        ElementsAre(names("model.seq_len", "is missing"), names("model.hidden", "missing"),
                    names("model.num_layers", "is missing"), names("model.num_heads", "is missing"),
                    names("run.dir", "is missing"), names("model.ffn_hidden", "is missing")));
  }
}

TEST(ValidateConfigTest, ASizeOfZeroIsAMissingOne) {
  EXPECT_THAT(problems_with({"model.num_layers=0"}),
              ElementsAre(StartsWith("command line: model.num_layers: is missing")));
}

TEST(ValidateConfigTest, NamesThePlaceOfTheKeyThatShouldChange) {
  const LoadedConfig loaded =
      parse_config(std::string(kMoeYaml) + "parallel: {ep: 3}\n", "run.yaml");

  try {
    validate_config(loaded, 3);
    FAIL() << "ep = 3 was accepted for 8 experts";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.lines(),
                ElementsAre("run.yaml:15:16: parallel.ep: 3 does not divide model.num_experts = 8; "
                            "choose a divisor",
                            StartsWith("run.yaml:14:28: train.global_batch_size: 8 is not "
                                       "divisible by micro_batch_size * dp = 1 * 3")));
  }
}

TEST(ValidateConfigTest, DefaultsHaveNoPlace) {
  EXPECT_THAT(problems_with_dense({"model.ffn_hidden=0"}),
              ElementsAre(names("model.ffn_hidden", "is missing")));
  EXPECT_THAT(problems_with({"model.first_dense_layers=1"}),
              ElementsAre(StartsWith("default value: model.ffn_hidden: is missing")));
}

TEST(ValidateConfigTest, HeadsMustDivideTheWidthUnlessTheyHaveTheirOwn) {
  EXPECT_THAT(
      problems_with({"model.hidden=30"}),
      ElementsAre(names("model.head_dim", "hidden = 30 is not divisible by num_heads = 4")));
  EXPECT_THAT(problems_with({"model.hidden=30", "model.head_dim=8"}), ElementsAre());
}

TEST(ValidateConfigTest, DevicesAreKnownByName) {
  EXPECT_THAT(problems_with({"run.device=tpu"}),
              ElementsAre(names("run.device", "unknown device 'tpu': use cpu")));
}

TEST(ValidateConfigTest, LayoutsMustDivideTheRanks) {
  EXPECT_THAT(problems_with({"parallel.tp=4"}, 2),
              ElementsAre(names("parallel.tp", "4 does not divide the 2 ranks")));
  EXPECT_THAT(problems_with({"parallel.ep=4"}, 2),
              ElementsAre(names("parallel.ep", "4 does not divide the 2 ranks")));
}

TEST(ValidateConfigTest, ExpertsMustDivideOverTheirRanks) {
  EXPECT_THAT(problems_with({"model.num_experts=6", "parallel.ep=4"}, 4),
              ElementsAre(names("parallel.ep", "4 does not divide model.num_experts = 6")));
}

TEST(ValidateConfigTest, DenseModelsHaveNoExpertRanks) {
  EXPECT_THAT(problems_with_dense({"parallel.ep=2"}, 2),
              ElementsAre(names("parallel.ep", "a dense model has no experts")));
}

TEST(ValidateConfigTest, HeadsMustDivideOverTp) {
  EXPECT_THAT(problems_with({"model.num_kv_heads=2", "parallel.tp=4"}, 4),
              ElementsAre(names("model.num_kv_heads", "2 is not divisible by parallel.tp = 4")));
  EXPECT_THAT(problems_with({"model.num_heads=6", "model.head_dim=8", "parallel.tp=4"}, 4),
              ElementsAre(names("model.num_heads", "6 is not divisible by parallel.tp = 4"),
                          names("model.num_kv_heads", "6 is not divisible by parallel.tp = 4")));
}

TEST(ValidateConfigTest, QueryHeadsMustShareKeysEvenly) {
  EXPECT_THAT(
      problems_with({"model.num_kv_heads=3"}),
      ElementsAre(names("model.num_heads", "4 is not divisible by model.num_kv_heads = 3")));
}

TEST(ValidateConfigTest, GroupsOfExpertsAreEven) {
  EXPECT_THAT(problems_with({"model.router.num_groups=3"}),
              ElementsAre(names("model.num_experts", "8 is not divisible by")));
  EXPECT_THAT(problems_with({"model.router.num_groups=4"}), ElementsAre());
}

TEST(ValidateConfigTest, ATokensGroupsHoldItsExperts) {
  EXPECT_THAT(problems_with({"model.router.num_groups=2", "model.router.groups_per_token=3"}),
              ElementsAre(names("model.router.groups_per_token", "3 is more than")));
  EXPECT_THAT(problems_with({"model.router.num_groups=8"}),
              ElementsAre(names("model.router.top_k", "2 is more than the 1 experts")));
  EXPECT_THAT(problems_with({"model.router.num_groups=8", "model.router.groups_per_token=2"}),
              ElementsAre());
}

TEST(ValidateConfigTest, TheScoreOfAGroupNeedsTwoExpertsWithSigmoid) {
  EXPECT_THAT(problems_with({"model.router.num_groups=8", "model.router.groups_per_token=2",
                             "model.router.score=sigmoid"}),
              ElementsAre(names("model.router.num_groups", "adds up 2 experts")));
}

TEST(ValidateConfigTest, RopeNeedsAnEvenWidth) {
  EXPECT_THAT(problems_with({"model.head_dim=7"}),
              ElementsAre(names("model.head_dim", "7 must be even")));
  EXPECT_THAT(problems_with({"model.head_dim=7", "model.position=learned"}), ElementsAre());
}

TEST(ValidateConfigTest, ChannelsTurnInPairsWithinAHead) {
  EXPECT_THAT(problems_with({"model.head_dim=8", "model.rotary_dim=3"}),
              ElementsAre(names("model.rotary_dim", "3 must be even and at most")));
  EXPECT_THAT(problems_with({"model.head_dim=8", "model.rotary_dim=10"}),
              ElementsAre(names("model.rotary_dim", "10 must be even and at most")));
  EXPECT_THAT(problems_with({"model.head_dim=8", "model.rotary_dim=8"}), ElementsAre());
}

TEST(ValidateConfigTest, OnlyRotationsHaveWavelengths) {
  for (const char* position : {"model.position=none", "model.position=learned"}) {
    EXPECT_THAT(problems_with({position, "model.rotary_dim=2", "model.rope_scaling.type=linear"}),
                ElementsAre(names("model.rotary_dim", "only model.position: rope"),
                            names("model.rope_scaling.type", "only model.position: rope")));
    EXPECT_THAT(problems_with({position}), ElementsAre());
  }
}

TEST(ValidateConfigTest, RopeScalingIsWholeOrNotThere) {
  const std::string factor = "model.rope_scaling.factor=4";
  EXPECT_THAT(problems_with({factor}),
              ElementsAre(names("model.rope_scaling.factor", "no effect")));
  EXPECT_THAT(problems_with({"model.rope_scaling.type=linear", factor}), ElementsAre());
  for (const char* type : {"model.rope_scaling.type=llama3", "model.rope_scaling.type=yarn"}) {
    EXPECT_THAT(problems_with({type, factor}),
                ElementsAre(names("model.rope_scaling.original_seq_len", "is missing")));
    EXPECT_THAT(problems_with({type, factor, "model.rope_scaling.original_seq_len=64"}),
                ElementsAre());
  }
}

TEST(ValidateConfigTest, LimitsOfRopeScalingStandInOrder) {
  const std::vector<std::string> common = {"model.rope_scaling.factor=4",
                                           "model.rope_scaling.original_seq_len=64"};
  const auto with = [&](std::initializer_list<std::string> more) {
    std::vector<std::string> all = common;
    all.insert(all.end(), more);
    return problems_with(all);
  };
  EXPECT_THAT(with({"model.rope_scaling.type=llama3", "model.rope_scaling.low_freq_factor=4"}),
              ElementsAre(names("model.rope_scaling.low_freq_factor",
                                "4 must be less than high_freq_factor = 4")));
  EXPECT_THAT(with({"model.rope_scaling.type=yarn", "model.rope_scaling.beta_slow=0"}),
              ElementsAre(names("model.rope_scaling.beta_slow",
                                "0 must be more than 0 and less than beta_fast = 32")));
}

TEST(ValidateConfigTest, DenseWidthsMustDivideOverTp) {
  EXPECT_THAT(problems_with_dense({"model.ffn_hidden=62", "parallel.tp=4"}, 4),
              ElementsAre(names("model.ffn_hidden", "62 is not divisible by parallel.tp = 4")));
  EXPECT_THAT(problems_with({"model.shared_expert_ffn_hidden=18", "parallel.tp=4"}, 4),
              ElementsAre(names("model.shared_expert_ffn_hidden",
                                "18 is not divisible by parallel.tp = 4")));
}

TEST(ValidateConfigTest, OnlySharedExpertsHaveAGate) {
  EXPECT_THAT(problems_with({"model.shared_expert_gate=true"}), ElementsAre());
  EXPECT_THAT(problems_with({"model.shared_expert_gate=true", "model.num_shared_experts=0"}),
              ElementsAre(names("model.shared_expert_gate", "has no effect")));
}

TEST(ValidateConfigTest, LeadingDenseLayersMustFit) {
  EXPECT_THAT(
      problems_with({"model.first_dense_layers=3", "model.ffn_hidden=64"}),
      ElementsAre(names("model.first_dense_layers", "3 is more than model.num_layers = 2")));
}

TEST(ValidateConfigTest, EveryTpRankNeedsATokenId) {
  EXPECT_THAT(problems_with({"model.vocab_size=1", "parallel.tp=2"}, 2),
              ElementsAre(names("model.vocab_size", "1 ids in parts of 1 leave none")));
  // The first three ranks would hold two ids each, so none would be left for the fourth.
  EXPECT_THAT(problems_with({"model.vocab_size=6", "parallel.tp=4"}, 4),
              ElementsAre(names("model.vocab_size", "6 ids in parts of 2 leave none")));
  EXPECT_THAT(problems_with({"model.vocab_size=7", "parallel.tp=4"}, 4), ElementsAre());
}

TEST(ValidateConfigTest, ExpertsNeedTheirSizes) {
  EXPECT_THAT(problems_with({"model.num_experts=0", "model.expert_ffn_hidden=0"}),
              ElementsAre(names("model.num_experts", "a bigmac model has routed experts"),
                          names("model.expert_ffn_hidden", "is missing"),
                          names("model.router.top_k", "2 is more than model.num_experts = 0")));
  EXPECT_THAT(problems_with({"model.shared_expert_ffn_hidden=0"}),
              ElementsAre(names("model.shared_expert_ffn_hidden", "is missing")));
}

TEST(ValidateConfigTest, NobodyChoosesMoreExpertsThanThereAre) {
  EXPECT_THAT(problems_with({"model.router.top_k=9"}),
              ElementsAre(names("model.router.top_k", "9 is more than model.num_experts = 8")));
}

TEST(ValidateConfigTest, TheLatentWidthBelongsToBigmac) {
  EXPECT_THAT(problems_with({"model.latent=0"}), ElementsAre(names("model.latent", "from 1 to")));
  EXPECT_THAT(problems_with({"model.latent=33"}), ElementsAre(names("model.latent", "not 33")));
  EXPECT_THAT(problems_with({"model.structure=fine_grained"}),
              ElementsAre(names("model.latent", "only bigmac models have it")));
}

TEST(ValidateConfigTest, BatchesMustDivideOverTheRanks) {
  EXPECT_THAT(problems_with({"train.micro_batch_size=3"}),
              ElementsAre(names("train.global_batch_size", "8 is not divisible by")));
  EXPECT_THAT(problems_with({"train.global_batch_size=6"}, 4),
              ElementsAre(names("train.global_batch_size", "= 1 * 4")));
}

TEST(ValidateConfigTest, TokensMustDivideOverTp) {
  EXPECT_THAT(problems_with({"model.seq_len=15", "parallel.tp=2"}, 2),
              ElementsAre(names("train.micro_batch_size", "not divisible by parallel.tp = 2")));
}

TEST(ValidateConfigTest, TheLargestSizesOverflowNothing) {
  EXPECT_THAT(
      problems_with(
          {"train.micro_batch_size=2147483647", "parallel.tp=3", "model.seq_len=2147483647"}, 6)
          .size(),
      ::testing::Gt(0u));
}

TEST(ValidateConfigTest, KeysOfAnUpdateRuleBelongToThatRule) {
  EXPECT_THAT(problems_with({"optimizer.muon.momentum=0.9", "optimizer.muon.nesterov=false",
                             "optimizer.muon.ns_steps=6"}),
              ElementsAre(names("optimizer.muon.momentum", "without optimizer.type: muon"),
                          names("optimizer.muon.nesterov", "without optimizer.type: muon"),
                          names("optimizer.muon.ns_steps", "without optimizer.type: muon")));
  EXPECT_THAT(problems_with({"optimizer.type=muon", "optimizer.momentum=0.9"}),
              ElementsAre(names("optimizer.momentum", "set optimizer.muon.momentum")));
  EXPECT_THAT(problems_with({"optimizer.type=muon", "optimizer.muon.momentum=0.9"}), ElementsAre());
}

TEST(ValidateConfigTest, MomentumIsNotOfAdamw) {
  EXPECT_THAT(problems_with({"optimizer.momentum=0.9"}),
              ElementsAre(names("optimizer.momentum", "without optimizer.type: sgd")));
  EXPECT_THAT(problems_with({"optimizer.momentum=0.9", "optimizer.type=sgd"}), ElementsAre());
}

TEST(ValidateConfigTest, AdaptiveRulesDivideByMoreThanZero) {
  EXPECT_THAT(problems_with({"optimizer.eps=0"}),
              ElementsAre(names("optimizer.eps", "choose more, such as 1e-8")));
  EXPECT_THAT(problems_with({"optimizer.eps=0", "optimizer.type=sgd"}), ElementsAre());
}

TEST(ValidateConfigTest, TheWarmUpIsNotLongerThanTheRun) {
  EXPECT_THAT(problems_with({"optimizer.schedule.warmup_steps=11", "train.max_steps=10"}),
              ElementsAre(names("optimizer.schedule.warmup_steps",
                                "a warm-up of 11 steps is longer than the run, "
                                "train.max_steps = 10; choose fewer")));
  EXPECT_THAT(problems_with({"optimizer.schedule.warmup_steps=10", "train.max_steps=10"}),
              ElementsAre());
  EXPECT_THAT(problems_with({"optimizer.schedule.warmup_steps=11"}), ElementsAre());
}

TEST(ValidateConfigTest, TheFallOfWsdFitsInTheRun) {
  const auto with = [](const std::string& decay_steps) {
    return problems_with({"optimizer.schedule.type=wsd", "optimizer.schedule.warmup_steps=3",
                          "train.max_steps=10", "optimizer.schedule.decay_steps=" + decay_steps});
  };
  EXPECT_THAT(with("7"), ElementsAre());
  EXPECT_THAT(with("8"), ElementsAre(names("optimizer.schedule.decay_steps",
                                           "after the 3 of the warm-up; choose at most 7")));
  EXPECT_THAT(with("2147483647"), ElementsAre(names("optimizer.schedule.decay_steps", "not fit")));
  EXPECT_THAT(with("0"), ElementsAre(names("optimizer.schedule.decay_steps", "is missing")));
}

TEST(ValidateConfigTest, TheRateFalls) {
  EXPECT_THAT(
      problems_with({"optimizer.lr=0.1", "optimizer.schedule.min_lr=0.2"}),
      ElementsAre(names("optimizer.schedule.min_lr", "0.2 is more than optimizer.lr = 0.1")));
  EXPECT_THAT(problems_with({"optimizer.lr=0.1", "optimizer.schedule.min_lr=0.1"}), ElementsAre());
}

TEST(ValidateConfigTest, TokensOfARunCanBeCounted) {
  EXPECT_THAT(problems_with({"train.max_steps=2147483647", "train.global_batch_size=2147483647"}),
              ElementsAre(names("train.max_steps", "cannot be counted; choose fewer")));
}

TEST(ValidateConfigTest, ARankDoesNotWaitForYears) {
  EXPECT_THAT(problems_with({"run.collective_timeout=9223372036854775807"}),
              ElementsAre(names("run.collective_timeout", "choose at most 31536000")));
}

TEST(ValidateConfigTest, HashLabelsFall) {
  EXPECT_THAT(problems_with({"hash.training.last_label=21"}),
              ElementsAre(names("hash.training.last_label", "21 is more than")));
  EXPECT_THAT(problems_with({"hash.training.negative_label=1"}),
              ElementsAre(names("hash.training.negative_label", "1 is not less than")));
}

TEST(ValidateConfigTest, HashesLearnFromSomething) {
  EXPECT_THAT(problems_with({"hash.training.positive_share=0", "hash.training.sigma=0"}),
              ElementsAre(names("hash.training.positive_share", "choose more"),
                          names("hash.training.sigma", "choose more")));
  EXPECT_THAT(problems_with({"hash.training.positive_share=1"}),
              ElementsAre(names("hash.training.positive_share", "choose less")));
  EXPECT_THAT(problems_with({"hash.evaluation.bits=[32, 8192]"}),
              ElementsAre(names("hash.evaluation.bits", "8192 is more than 4096")));
}

TEST(ValidateConfigTest, MethodsAreMeasuredWithSomeBudget) {
  EXPECT_THAT(problems_with({"hash.evaluation.budgets=[]"}),
              ElementsAre(names("hash.evaluation.budgets", "names no budget")));
  EXPECT_THAT(problems_with({"hash.evaluation.budgets=[]", "hash.evaluation.methods=[]"}),
              ElementsAre());
}

// 32 query heads of a group: 65,535 / 32 bits, in whole words.
TEST(ValidateConfigTest, DistancesOfSignsFitTheirType) {
  const auto problems = [](const char* bits, const char* user) {
    return problems_with({"model.num_heads=32", "model.num_kv_heads=1", "model.head_dim=8",
                          std::string("hash.bits=") + bits, user});
  };
  for (const char* user : {"hash.training.objective=paper", "decode.attention=random_hash"}) {
    EXPECT_THAT(problems("2016", user), ElementsAre());
    EXPECT_THAT(problems("2048", user),
                ElementsAre(names("hash.bits",
                                  "the 32 query heads of a group, do not fit 16 bits; "
                                  "choose at most 2016")));
  }
  EXPECT_THAT(problems("2048", "hash.training.objective=ranking"), ElementsAre());
}

TEST(ValidateConfigTest, KeysThatAreAlwaysChosenFitInTheBudget) {
  EXPECT_THAT(problems_with({"decode.budget=4", "decode.sink=3", "decode.recent=2"}),
              ElementsAre(names("decode.budget", "decode.sink + decode.recent = 5")));
  EXPECT_THAT(problems_with({"decode.budget=5", "decode.sink=3", "decode.recent=2"}),
              ElementsAre());
}

TEST(ValidateConfigTest, RecallSamplesMustFitTheContext) {
  EXPECT_THAT(problems_with({"data.tokenizer.type=recall", "model.seq_len=64"}), ElementsAre());
  EXPECT_THAT(problems_with({"data.tokenizer.type=recall", "data.recall.tasks=[multi_value]"}),
              ElementsAre(names("data.recall.tasks", "multi_value takes 20 tokens and does not")));
  EXPECT_THAT(problems_with({"data.recall.tasks=[multi_value]"}), ElementsAre());
  EXPECT_THAT(
      problems_with({"data.tokenizer.type=recall", "model.seq_len=64", "data.recall.shortest=65"}),
      ElementsAre(names("data.recall.shortest", "65 is more than model.seq_len = 64")));
}

TEST(ValidateConfigTest, RecallSamplesThatShareASequenceMustNotSeeEachOther) {
  const Lines shared = {"data.tokenizer.type=recall", "model.seq_len=64",
                        "data.recall.shortest=32"};
  Lines masked = shared;
  masked.push_back("data.mask=document");

  EXPECT_THAT(problems_with(shared), ElementsAre(names("data.mask", "set it to document")));
  EXPECT_THAT(problems_with(masked), ElementsAre());
}

TEST(ValidateConfigTest, SaysWhatToDo) {
  EXPECT_THAT(problems_with({"train.global_batch_size=6"}, 4),
              ElementsAre(names("train.global_batch_size", "choose a multiple of 4")));
  EXPECT_THAT(problems_with({"model.router.top_k=9"}),
              ElementsAre(names("model.router.top_k", "choose fewer")));
  EXPECT_THAT(
      problems_with({"model.num_kv_heads=2", "parallel.tp=4"}, 4),
      ElementsAre(names("model.num_kv_heads", "choose a multiple, or another parallel.tp")));
}

// The kernels refuse the same, but only once a run has begun.
TEST(ValidateConfigTest, NamesWhatCudaDevicesDoNotTake) {
  const Lines large = {"model.head_dim=272",         "model.hidden=16640",
                       "model.num_experts=1024",     "model.router.top_k=33",
                       "model.router.num_groups=64", "model.router.groups_per_token=64"};
  Lines on_cuda = large;
  on_cuda.push_back("run.device=cuda:1");

  const Lines problems = problems_with(on_cuda);

  EXPECT_THAT(problems_with(large), ElementsAre());
  EXPECT_THAT(problems, Contains(names("model.head_dim", "at most 256")));
  EXPECT_THAT(problems, Contains(names("model.hidden", "at most 16384")));
  EXPECT_THAT(problems, Contains(names("model.num_experts", "at most 512")));
  EXPECT_THAT(problems, Contains(names("model.router.top_k", "at most 32")));
  EXPECT_THAT(problems, Contains(names("model.router.num_groups", "at most 32")));
}

TEST(ValidateConfigTest, NamesAllProblemsAtOnce) {
  EXPECT_EQ(problems_with({"run.device=tpu", "model.head_dim=7", "model.latent=0",
                           "train.micro_batch_size=3"})
                .size(),
            4u);
}

}  // namespace
}  // namespace switchyard
