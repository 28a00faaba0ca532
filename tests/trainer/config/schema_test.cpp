#include "trainer/config/schema.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "tests/support/temporary_folder.h"
#include "trainer/config/config_reader.h"

namespace switchyard {
namespace {

// A value that the field accepts and that is not its default.
ConfigValue other_value(const ConfigField& field) {
  const std::string before = field.print(RunConfig{});
  for (const std::string candidate : {"7", "0.625", "7.5", "true", "false"}) {
    RunConfig config;
    const ConfigValue value{.items = {candidate}};
    if (!field.parse(config, value) && field.print(config) != before && field.type != "text" &&
        field.type != "list of text" && !field.takes_records) {
      return value;
    }
  }
  if (field.takes_records) {
    return {.items = {"a", ""},
            .records = {{}, {{"path", "b, c"}, {"weight", "0.25"}, {"name", "d: e"}}},
            .is_list = true};
  }
  if (field.type == "text") return {.items = {"a \"b\" \\ c: [d] # é\te\nf"}};
  if (field.type == "list of text") {
    return {.items = {"a, b", "\"c\"", "true", ""}, .is_list = true};
  }
  // The last choice
  return {.items = {field.type.substr(field.type.rfind(' ') + 1)}};
}

RunConfig config_of_other_values() {
  RunConfig config;
  for (const ConfigField& field : config_schema()) field.parse(config, other_value(field));
  return config;
}

TEST(ConfigSchemaTest, EveryKeyIsStoredAndPrinted) {
  const RunConfig defaults, config = config_of_other_values();

  for (const ConfigField& field : config_schema()) {
    EXPECT_NE(field.print(config), field.print(defaults)) << field.key;
  }
}

TEST(ConfigSchemaTest, NoKeyStandsTwice) {
  std::set<std::string> keys;

  for (const ConfigField& field : config_schema()) {
    EXPECT_TRUE(keys.insert(field.key).second) << field.key;
  }
}

TEST(ConfigSchemaTest, YamlReadsBackEqual) {
  const std::string yaml = to_yaml(config_of_other_values());

  EXPECT_EQ(to_yaml(parse_config(yaml, "stored").config), yaml);
}

TEST(ConfigSchemaTest, BooleansOfOlderFilesNameChoices) {
  EXPECT_EQ(parse_config("model: {bias: true}", "stored").config.model.bias, Biases::all);
  EXPECT_EQ(parse_config("model: {bias: false}", "stored").config.model.bias, Biases::none);
  EXPECT_EQ(parse_config("model: {bias: qkv}", "stored").config.model.bias, Biases::qkv);
  EXPECT_EQ(parse_config("model: {qk_norm: true}", "stored").config.model.qk_norm,
            QkNormKind::head);
  EXPECT_EQ(parse_config("parallel: {deduplicate: false}", "stored").config.parallel.deduplicate,
            Deduplicate::none);
  EXPECT_EQ(parse_config("parallel: {deduplicate: true}", "stored").config.parallel.deduplicate,
            Deduplicate::rank);
}

TEST(ConfigSchemaTest, TextReadsBackEqual) {
  RunConfig config;
  config.run.dir = "a \"b\" \\ c: [d] # é\te\n f\x01";

  EXPECT_EQ(parse_config(to_yaml(config), "stored").config.run.dir, config.run.dir);
}

TEST(ConfigSchemaTest, NumbersReadBackToTheLastBit) {
  RunConfig config;
  config.optimizer.lr = 0.1 + 0.2;
  config.optimizer.eps = 4.9e-9;
  config.model.rope_theta = 1e6 / 3.0;

  const RunConfig again = parse_config(to_yaml(config), "stored").config;

  EXPECT_EQ(again.optimizer.lr, config.optimizer.lr);
  EXPECT_EQ(again.optimizer.eps, config.optimizer.eps);
  EXPECT_EQ(again.model.rope_theta, config.model.rope_theta);
}

TEST(ConfigSchemaTest, TheReferencePageIsUpToDate) {
  EXPECT_EQ(test::read_file(SWITCHYARD_SOURCE_DIR "/docs/configuration.md"), config_reference())
      << "run: switchyard config-reference > docs/configuration.md";
}

}  // namespace
}  // namespace switchyard
