#include "trainer/config/checkpoint_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/config/config_error.h"
#include "trainer/config/schema.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using Lines = std::vector<std::string>;

constexpr char kCheckpoint[] = "runs/b/checkpoints/step_00000100";

// What a run with these settings stores in its checkpoints.
std::string stored(const std::string& more = "") {
  RunConfig config = parse_config(
                         "run: {dir: runs/b}\n"
                         "model: {seq_len: 16, hidden: 32, num_layers: 2, num_heads: 4,\n"
                         "  num_kv_heads: 2, ffn_hidden: 64, norm_eps: 0.1}\n" +
                             more,
                         "first.yaml")
                         .config;
  config.model.vocab_size = 257;
  return to_yaml(config);
}

LoadedConfig adopted(const std::string& yaml, CheckpointUse use,
                     const std::string& checkpoint = stored()) {
  LoadedConfig loaded = parse_config(yaml, "run.yaml");
  adopt_checkpoint_config(loaded, checkpoint, kCheckpoint, use);
  return loaded;
}

Lines problems_of(const std::string& yaml, CheckpointUse use,
                  const std::string& checkpoint = stored()) {
  try {
    adopted(yaml, use, checkpoint);
  } catch (const ConfigError& error) {
    return error.lines();
  }
  return {};
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(CheckpointConfigTest, AModelThatNobodyDescribesIsTheCheckpoints) {
  for (const CheckpointUse use : {CheckpointUse::training, CheckpointUse::inference}) {
    const LoadedConfig loaded = adopted("run: {dir: runs/b}", use);

    EXPECT_EQ(loaded.config.model.hidden, 32);
    EXPECT_EQ(loaded.config.model.vocab_size, 257);
    EXPECT_EQ(loaded.config.model.num_kv_heads, 2);
    EXPECT_EQ(loaded.config.model.head_dim, 8);
    EXPECT_EQ(loaded.config.model.norm_eps, 0.1);
    EXPECT_EQ(loaded.origins.at("model.norm_eps"), kCheckpoint);
  }
}

TEST(CheckpointConfigTest, ValuesThatFollowFromOtherKeysWereNotMentioned) {
  const LoadedConfig loaded =
      adopted("model: {hidden: 32, num_heads: 4, vocab_size: 0}", CheckpointUse::inference);

  EXPECT_EQ(loaded.config.model.num_kv_heads, 2);
  EXPECT_EQ(loaded.config.model.vocab_size, 257);
}

TEST(CheckpointConfigTest, EveryContradictionIsNamedWithItsPlaceAndBothValues) {
  EXPECT_THAT(
      problems_of("model: {norm_eps: 0.2, router: {routed_scaling_factor: 100}, hidden: 32}\n"
                  "data: {mask: document, tokenizer: {type: recall}}\n",
                  CheckpointUse::inference),
      ElementsAre(
          "run.yaml:1:19: model.norm_eps: 0.2 is not the value of the checkpoint "
          "runs/b/checkpoints/step_00000100, which has 0.1; take the key out, or name another "
          "checkpoint with checkpoint.resume",
          AllOf(HasSubstr("model.router.routed_scaling_factor: 100"), HasSubstr("which has 1;")),
          AllOf(HasSubstr("data.tokenizer.type: recall"), HasSubstr("which has byte;")),
          AllOf(HasSubstr("data.mask: document"), HasSubstr("which has causal;"))));
}

TEST(CheckpointConfigTest, ADefaultThatIsMentionedContradictsToo) {
  EXPECT_THAT(problems_of("model: {norm_eps: 1.0e-5}", CheckpointUse::training),
              ElementsAre(AllOf(HasSubstr("model.norm_eps: 1e-05"), HasSubstr("which has 0.1"),
                                HasSubstr("give run.dir a new folder to start afresh"))));
}

TEST(CheckpointConfigTest, NoKeyOfTheModelIsForgotten) {
  for (const ConfigField& field : config_schema()) {
    if (!field.key.starts_with("model.")) continue;
    EXPECT_TRUE(field.decides == Decides::model || field.decides == Decides::context) << field.key;
  }
  EXPECT_EQ(decided_by("data.mask"), Decides::model);
  EXPECT_EQ(decided_by("data.tokenizer.type"), Decides::model);
}

TEST(CheckpointConfigTest, AKeyWithoutARowIsAnError) {
  EXPECT_THAT(message_of([] { decided_by("model.new_key"); }),
              HasSubstr("model.new_key is missing in the table"));
}

TEST(CheckpointConfigTest, TheContextMayOnlyChangeInTraining) {
  EXPECT_THAT(problems_of("model: {seq_len: 32}", CheckpointUse::training), IsEmpty());
  EXPECT_THAT(problems_of("model: {seq_len: 32}", CheckpointUse::inference),
              ElementsAre(AllOf(HasSubstr("model.seq_len: 32"), HasSubstr("which has 16"))));
  EXPECT_EQ(adopted("", CheckpointUse::training).config.model.seq_len, 16);
}

TEST(CheckpointConfigTest, StateOfAnotherUpdateRuleIsRefused) {
  const std::string sgd = stored("optimizer: {type: sgd}\n");

  EXPECT_THAT(problems_of("optimizer: {type: adamw}", CheckpointUse::training, sgd),
              ElementsAre(AllOf(StartsWith("run.yaml:1:19: optimizer.type: adamw"),
                                HasSubstr("which has sgd"), HasSubstr("another update rule"),
                                HasSubstr("to start afresh"))));
  EXPECT_THAT(problems_of("optimizer: {type: adamw}", CheckpointUse::inference, sgd), IsEmpty());
  EXPECT_EQ(adopted("", CheckpointUse::training, sgd).config.optimizer.type, OptimizerType::sgd);
}

TEST(CheckpointConfigTest, OtherChangesAreListedOldAndNewALinePerSection) {
  RunConfig config = parse_config(stored(), "run.yaml").config;
  config.model.seq_len = 32;
  config.optimizer.lr = 0.5;
  config.optimizer.clip = 2.0;
  config.train.max_steps = 7;
  config.decode.keys.budget = 3.0;
  config.run.dir = "elsewhere";

  EXPECT_THAT(changes_since_checkpoint(config, stored(), kCheckpoint),
              ElementsAre("model: seq_len 16 -> 32", "optimizer: lr 0.0003 -> 0.5, clip 1 -> 2",
                          "train: max_steps 0 -> 7"));
}

TEST(CheckpointConfigTest, ACheckpointThatWasNotExpectedIsComparedAgain) {
  RunConfig config = parse_config(stored(), "run.yaml").config;
  const auto check = [&] {
    require_checkpoint_config(config, stored(), kCheckpoint, CheckpointUse::training);
  };
  EXPECT_EQ(message_of(check), "");

  config.model.norm_eps = 0.2;

  EXPECT_THAT(message_of(check),
              HasSubstr("model.norm_eps: 0.2 is not the value of the checkpoint"));
}

TEST(CheckpointConfigTest, AConfigurationOfAnOlderProgramLacksKeys) {
  const LoadedConfig loaded =
      adopted("model: {qk_norm: false}", CheckpointUse::inference, "model: {hidden: 32}\n");

  EXPECT_EQ(loaded.config.model.hidden, 32);
  EXPECT_EQ(loaded.config.model.qk_norm, QkNormKind::none);
}

}  // namespace
}  // namespace switchyard
