#include "trainer/config/config_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/temporary_folder.h"
#include "trainer/config/config_error.h"

namespace switchyard {
namespace {

using test::TemporaryFolder;
using test::write_file;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Lines = std::vector<std::string>;

// The lines of the ConfigError that `body` throws; empty if it throws none.
Lines problems_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const ConfigError& error) {
    return error.lines();
  }
  return {};
}

Lines problems_in(const std::string& yaml) {
  return problems_of([&] { parse_config(yaml, "run.yaml"); });
}

Lines problems_with(const std::vector<std::string>& overrides) {
  TemporaryFolder folder;
  const auto path = folder.path() / "run.yaml";
  write_file(path, "model: {hidden: 8}\n");
  return problems_of([&] { load_config(path.string(), overrides); });
}

TEST(ConfigReaderTest, ReadsValuesOfEveryType) {
  const RunConfig config = parse_config(
                               "run: {dir: runs/x, seed: 18}\n"
                               "model: {structure: bigmac, hidden: 64, norm_eps: 1.0e-6}\n"
                               "parallel: {recompute: true}\n"
                               "data: {text: [a, b c]}\n",
                               "run.yaml")
                               .config;

  EXPECT_EQ(config.run.dir, "runs/x");
  EXPECT_EQ(config.run.seed, 18u);
  EXPECT_EQ(config.model.structure, Structure::bigmac);
  EXPECT_EQ(config.model.hidden, 64);
  EXPECT_EQ(config.model.norm_eps, 1e-6);
  EXPECT_TRUE(config.parallel.recompute);
  EXPECT_THAT(config.data.text, ElementsAre("a", "b c"));
}

TEST(ConfigReaderTest, ReadsWholeNumbersInScientificNotation) {
  EXPECT_EQ(parse_config("train: {max_steps: 1e6}\n", "run.yaml").config.train.max_steps, 1000000);
}

TEST(ConfigReaderTest, AnEmptyFileMeansTheDefaults) {
  EXPECT_EQ(to_yaml(parse_config("", "run.yaml").config), to_yaml(RunConfig{}));
}

TEST(ConfigReaderTest, FillsInValuesThatFollowFromOthers) {
  const ModelConfig model =
      parse_config("model: {hidden: 96, num_heads: 4}\n", "run.yaml").config.model;

  EXPECT_EQ(model.num_kv_heads, 4);
  EXPECT_EQ(model.head_dim, 24);
}

TEST(ConfigReaderTest, SaysWhatFilledInValuesFollowFrom) {
  const LoadedConfig loaded = parse_config("model: {hidden: 96, num_heads: 4}\n", "run.yaml");

  EXPECT_EQ(loaded.origins.at("model.num_kv_heads"), "from model.num_heads");
  EXPECT_EQ(loaded.origins.at("model.head_dim"), "from model.hidden / model.num_heads");
  EXPECT_EQ(parse_config("model: {hidden: 96}\n", "run.yaml").origins.size(), 1u);
}

TEST(ConfigReaderTest, NamesUnknownKeysWithTheirPlaceAndTheNearestKey) {
  EXPECT_THAT(problems_in("model:\n  hidden: 8\n  num_layer: 2\n"),
              ElementsAre("run.yaml:3:3: unknown key model.num_layer; did you mean "
                          "model.num_layers?"));
}

TEST(ConfigReaderTest, FindsAKeyThatStandsInTheWrongSection) {
  EXPECT_THAT(problems_in("model: {top_k: 2}\n"),
              ElementsAre("run.yaml:1:9: unknown key model.top_k; did you mean "
                          "model.router.top_k?"));
}

TEST(ConfigReaderTest, SuggestsNothingWhereNothingIsNear) {
  EXPECT_THAT(problems_in("model: {flux_capacitor: 2}\n"),
              ElementsAre("run.yaml:1:9: unknown key model.flux_capacitor"));
}

TEST(ConfigReaderTest, NamesUnknownSections) {
  EXPECT_THAT(problems_in("modle: {hidden: 8}\n"),
              ElementsAre("run.yaml:1:1: unknown key modle; did you mean model?"));
}

TEST(ConfigReaderTest, NamesRepeatedKeysAtTheirSecondPlace) {
  EXPECT_THAT(problems_in("model:\n  hidden: 8\n  num_heads: 2\n  hidden: 16\n"),
              ElementsAre("run.yaml:4:3: model.hidden is given twice in this file"));
}

TEST(ConfigReaderTest, NamesRepeatedSections) {
  EXPECT_THAT(problems_in("model: {hidden: 8}\nmodel: {num_heads: 2}\n"),
              ElementsAre("run.yaml:2:1: model is given twice in this file"));
}

TEST(ConfigReaderTest, NamesMistypedValuesAtTheValue) {
  EXPECT_THAT(
      problems_in("run:\n  seed: -1\n"
                  "model:\n  structure: moe\n  hidden: wide\n  num_layers: 2.5\n"
                  "  tie_embeddings: yes\n"
                  "  norm_eps: nan\n"
                  "optimizer:\n  lr: -0.5\n"),
      ElementsAre("run.yaml:2:9: run.seed: must be at least 0, not -1",
                  "run.yaml:4:14: model.structure: expected one of dense | vanilla | fine_grained "
                  "| bigmac, not 'moe'",
                  "run.yaml:5:11: model.hidden: expected an integer, not 'wide'",
                  "run.yaml:6:15: model.num_layers: expected an integer, not '2.5'",
                  "run.yaml:8:13: model.norm_eps: expected a number, not 'nan'",
                  "run.yaml:7:19: model.tie_embeddings: expected true or false, not 'yes'",
                  "run.yaml:10:7: optimizer.lr: must be from 0 to 1000, not -0.5"));
}

TEST(ConfigReaderTest, NamesNumbersThatAreTooLarge) {
  EXPECT_THAT(problems_in("model: {num_experts: 100001}\n"),
              ElementsAre("run.yaml:1:22: model.num_experts: must be at most 100000, not 100001"));
  // Sizes are multiplied with each other, so each must be far below the limit of 64 bits.
  EXPECT_THAT(problems_in("train: {micro_batch_size: 4611686018427387904}\n"),
              ElementsAre("run.yaml:1:27: train.micro_batch_size: must be at most 2147483647, not "
                          "4611686018427387904"));
}

TEST(ConfigReaderTest, NamesNumbersWithTextBehindThem) {
  EXPECT_THAT(problems_in("model: {hidden: 64k}\n"),
              ElementsAre("run.yaml:1:17: model.hidden: expected an integer, not '64k'"));
}

TEST(ConfigReaderTest, NamesListsWhereOneValueBelongs) {
  EXPECT_THAT(problems_in("model: {hidden: [8, 16]}\n"),
              ElementsAre("run.yaml:1:17: model.hidden: expected an integer, not a list"));
}

TEST(ConfigReaderTest, NamesWhatAListOfChoicesDoesNotHave) {
  EXPECT_THAT(problems_in("data: {recall: {tasks: [single, double]}}\n"),
              ElementsAre("run.yaml:1:24: data.recall.tasks: expected some of single | multi_key | "
                          "multi_value | multi_query | variable_tracking, not 'double'"));
  EXPECT_THAT(problems_in("data: {recall: {tasks: [single, single]}}\n"),
              ElementsAre("run.yaml:1:24: data.recall.tasks: single is given twice"));
}

TEST(ConfigReaderTest, NamesListsWithinLists) {
  EXPECT_THAT(problems_in("data: {text: [a, [b]]}\n"),
              ElementsAre("run.yaml:1:14: data.text: expected a list of values"));
}

TEST(ConfigReaderTest, NamesSectionsWhereAValueBelongs) {
  EXPECT_THAT(problems_in("model: {hidden: {wide: 8}}\n"),
              ElementsAre("run.yaml:1:17: model.hidden: expected a value, not keys below it"));
}

TEST(ConfigReaderTest, NamesValuesWhereASectionBelongs) {
  EXPECT_THAT(problems_in("model: 8\n"),
              ElementsAre("run.yaml:1:1: model is a section: expected keys below it"));
}

TEST(ConfigReaderTest, NamesKeysWithoutAValue) {
  const std::string nothing = "model.hidden: expected a value, not nothing";

  EXPECT_THAT(problems_in("model:\n  hidden:\n  num_heads: 2\n"),
              ElementsAre("run.yaml:2:3: " + nothing));
  EXPECT_THAT(problems_in("model:\n  hidden:\n"), ElementsAre("run.yaml:2:3: " + nothing));
  EXPECT_THAT(problems_in("model: {hidden: , num_heads: 2}\n"),
              ElementsAre("run.yaml:1:9: " + nothing));
  EXPECT_THAT(problems_in("model:\n  hidden: null\n"), ElementsAre("run.yaml:2:3: " + nothing));
}

TEST(ConfigReaderTest, NamesASecondDocument) {
  EXPECT_THAT(
      problems_in("model: {hidden: 8}\n---\nmodel: {hiden: 9}\n"),
      ElementsAre("run.yaml:2:1: a second document begins; give each experiment its own file"));
  EXPECT_THAT(problems_in("model: {hidden: 8}\nmodel} {hidden: 9}\n"),
              ElementsAre(::testing::StartsWith("run.yaml:2:")));
  EXPECT_THAT(problems_in("---\nmodel: {hidden: 8}\n...\n"), ElementsAre());
}

TEST(ConfigReaderTest, SaysWhereATextBeganThatSwallowedTheRestOfTheFile) {
  const std::string missing = "the closing quote of the text that begins here is missing";
  for (const char quote : {'"', '\''}) {
    const auto with_quote = [&](std::string text) {
      std::ranges::replace(text, '"', quote);
      return problems_in(text);
    };
    const std::string to_line = missing + ": it runs on to line 4, which looks like a key";
    EXPECT_THAT(
        with_quote("run:\n  dir: \"runs/x\n  seed: 3\nmodel:\n  hidden: 8\n\"\n"),
        ElementsAre("run.yaml:2:8: " + missing + ": it runs on to line 3, which looks like a key"));
    EXPECT_THAT(with_quote("run:\n  dir: \"runs/x\n\nmodel: {hidden: 8}\ndata: {train: \"a\"}\n"),
                ElementsAre("run.yaml:2:8: " + missing));
    EXPECT_THAT(with_quote("data:\n  text:\n    - \"a\n    - b: 4\n    - c\"\n"),
                ElementsAre("run.yaml:3:7: " + to_line));
    EXPECT_THAT(with_quote("run:\n  dir: \"runs/x\n  seed: 3\n"),
                ElementsAre("run.yaml:2:8: " + missing));
    EXPECT_THAT(with_quote("# it's a \" in a comment\nrun: {dir: \"x}\n"),
                ElementsAre("run.yaml:2:12: " + missing));
  }
}

TEST(ConfigReaderTest, AQuotedTextMayHaveLineBreaksAndColons) {
  EXPECT_THAT(problems_in("run:\n  dir: \"runs/x\n    y\"\n  seed: 3\n"), ElementsAre());
  EXPECT_THAT(problems_in("run: {dir: \"a: b\", seed: 3}\n"), ElementsAre());
  EXPECT_THAT(problems_in("run:\n  dir: 'it''s: \"x'\n  seed: 3\n"), ElementsAre());
  EXPECT_THAT(problems_in("run:\n  dir: \"a \\\" b\"\n  seed: 3\n"), ElementsAre());
}

TEST(ConfigReaderTest, NamesTabsAndMergeKeys) {
  const std::string inherit =
      " is not read here; inherit whole files by `base: other.yaml` at the top";
  EXPECT_THAT(problems_in("model:\n\thidden: 3\n"),
              ElementsAre("run.yaml:2:1: the line is indented by a tab; YAML wants spaces"));
  EXPECT_THAT(problems_in("model:\n  hidden: 3\n  \tnum_heads: 3\n"),
              ElementsAre("run.yaml:3:3: the line is indented by a tab; YAML wants spaces"));
  EXPECT_THAT(problems_in("model:\n  <<: {hidden: 3}\n"),
              ElementsAre("run.yaml:2:3: the merge key <<" + inherit));
  EXPECT_THAT(problems_in("model:\n  base: other.yaml\n"),
              ElementsAre("run.yaml:2:3: model.base" + inherit));
  EXPECT_THAT(problems_with({"base=other.yaml"}),
              ElementsAre("'base=other.yaml': base is read from files alone; write it at the top "
                          "of a file"));
}

TEST(ConfigReaderTest, QuotesMakeTextOfNumbersAndTruthValues) {
  EXPECT_THAT(
      problems_in("model: {hidden: \"8\", norm_eps: '1e-6', tie_embeddings: \"true\"}\n"),
      ElementsAre("run.yaml:1:17: model.hidden: expected an integer, not the text \"8\"",
                  "run.yaml:1:32: model.norm_eps: expected a number, not the text \"1e-6\"",
                  "run.yaml:1:56: model.tie_embeddings: expected true or false, not the text "
                  "\"true\""));
}

TEST(ConfigReaderTest, QuotesDoNotMatterToTextAndChoices) {
  const RunConfig config =
      parse_config("run: {dir: 'runs/x'}\nmodel: {structure: \"bigmac\"}\n", "run.yaml").config;

  EXPECT_EQ(config.run.dir, "runs/x");
  EXPECT_EQ(config.model.structure, Structure::bigmac);
}

TEST(ConfigReaderTest, ReadsSeedsOfSixtyThreeBits) {
  EXPECT_EQ(parse_config("run: {seed: 9223372036854775807}\n", "run.yaml").config.run.seed,
            9223372036854775807u);
  EXPECT_THAT(problems_in("run: {seed: 9223372036854775808}\n"),
              ElementsAre("run.yaml:1:13: run.seed: 9223372036854775808 is too large: at most "
                          "9223372036854775807, or 9e15 with an exponent"));
}

TEST(ConfigReaderTest, NamesKeysThatAreNotWords) {
  EXPECT_THAT(problems_in("? [a, b]\n: 3\n"), ElementsAre("run.yaml:1:3: a key must be a word"));
}

TEST(ConfigReaderTest, NamesFilesThatAreNotSections) {
  EXPECT_THAT(problems_in("- a\n- b\n"),
              ElementsAre("run.yaml:1:1: expected sections such as `model:`"));
}

TEST(ConfigReaderTest, NamesThePlaceOfBrokenYaml) {
  const Lines lines = problems_in("model:\n  hidden: [8\ntrain: {}\n");

  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], ::testing::StartsWith("run.yaml:3:"));
}

TEST(ConfigReaderTest, NamesAllProblemsAtOnce) {
  EXPECT_THAT(problems_in("model:\n  hiden: 8\n  num_heads: two\n  num_heads: 2\nrun: 3\n"),
              ElementsAre("run.yaml:2:3: unknown key model.hiden; did you mean model.hidden?",
                          "run.yaml:4:3: model.num_heads is given twice in this file",
                          "run.yaml:5:1: run is a section: expected keys below it",
                          "run.yaml:3:14: model.num_heads: expected an integer, not 'two'"));
}

TEST(ConfigReaderTest, NamesAFileThatCannotBeRead) {
  TemporaryFolder folder;
  const std::string missing = (folder.path() / "missing.yaml").string();
  const std::string a_folder = folder.path().string();

  EXPECT_THAT(problems_of([&] { load_config(missing, {}); }),
              ElementsAre(missing + ": cannot be read"));
  EXPECT_THAT(problems_of([&] { load_config(a_folder, {}); }),
              ElementsAre(a_folder + ": cannot be read"));
}

class ConfigBaseTest : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& yaml) {
    const auto path = folder_.path() / name;
    write_file(path, yaml);
    return path.string();
  }
  std::string path(const std::string& name) const { return (folder_.path() / name).string(); }

  TemporaryFolder folder_;
};

TEST_F(ConfigBaseTest, AFileOverridesItsBaseAndTheCommandLineBoth) {
  write("base.yaml", "model: {hidden: 8, num_heads: 2, num_layers: 1}\n");
  const std::string top = write("top.yaml", "base: base.yaml\nmodel: {hidden: 16, num_heads: 4}\n");

  const ModelConfig model = load_config(top, {"model.hidden=32"}).config.model;

  EXPECT_EQ(model.hidden, 32);
  EXPECT_EQ(model.num_heads, 4);
  EXPECT_EQ(model.num_layers, 1);
}

TEST_F(ConfigBaseTest, BasesHaveBasesAndStandBesideTheFileThatNamesThem) {
  write("one.yaml", "model: {hidden: 8}\n");
  write("deep/two.yaml", "base: ../one.yaml\n");
  const std::string top = write("top.yaml", "base: deep/two.yaml\n");

  EXPECT_EQ(load_config(top, {}).config.model.hidden, 8);
}

TEST_F(ConfigBaseTest, RemembersWhereEveryValueCameFrom) {
  write("base.yaml", "model:\n  hidden: 8\n  num_heads: 2\n");
  const std::string top = write("top.yaml", "base: base.yaml\nmodel:\n  num_heads: 4\n");

  const LoadedConfig loaded = load_config(top, {"model.num_layers=3"});

  EXPECT_EQ(loaded.origins, (std::map<std::string, std::string>{
                                {"model.hidden", path("base.yaml") + ":2:11"},
                                {"model.num_heads", path("top.yaml") + ":3:14"},
                                {"model.num_layers", "command line"},
                                {"model.num_kv_heads", "from model.num_heads"},
                                {"model.head_dim", "from model.hidden / model.num_heads"}}));
}

TEST_F(ConfigBaseTest, PrintsEveryValueWithItsOrigin) {
  const std::string top = write("top.yaml", "model: {hidden: 8}\n");

  const std::string text = describe_config(load_config(top, {"train.max_steps=3"}));

  EXPECT_THAT(text, ::testing::ContainsRegex("  hidden: 8 +# " + path("top.yaml") + ":1:17\n"));
  EXPECT_THAT(text, ::testing::ContainsRegex("  max_steps: 3 +# command line\n"));
  EXPECT_THAT(text, ::testing::ContainsRegex("  num_layers: 0 +# default\n"));
}

TEST_F(ConfigBaseTest, NamesTheFilesOfACircle) {
  const std::string a = write("a.yaml", "base: b.yaml\n");
  const std::string b = write("b.yaml", "model: {hidden: 8}\nbase: a.yaml\n");

  EXPECT_THAT(
      problems_of([&] { load_config(a, {}); }),
      ElementsAre(b + ":2:7: base: the files form a circle: " + a + " -> " + b + " -> " + a));
}

TEST_F(ConfigBaseTest, NamesAFileThatIsItsOwnBase) {
  const std::string a = write("a.yaml", "base: a.yaml\n");

  EXPECT_THAT(problems_of([&] { load_config(a, {}); }),
              ElementsAre(a + ":1:7: base: the files form a circle: " + a + " -> " + a));
}

TEST_F(ConfigBaseTest, NamesAMissingBaseAndWhoWantsIt) {
  const std::string top = write("top.yaml", "base: gone.yaml\n");

  EXPECT_THAT(problems_of([&] { load_config(top, {}); }),
              ElementsAre(path("gone.yaml") + ": cannot be read, the base of " + top));
}

TEST_F(ConfigBaseTest, NamesABaseThatIsNoFileName) {
  const std::string top = write("top.yaml", "base: [a.yaml, b.yaml]\n");
  const std::string none = write("none.yaml", "base:\nmodel: {hidden: 8}\n");

  EXPECT_THAT(problems_of([&] { load_config(top, {}); }),
              ElementsAre(top + ":1:7: base: expected the name of a file"));
  EXPECT_THAT(problems_of([&] { load_config(none, {}); }),
              ElementsAre(none + ":1:1: base: expected the name of a file"));
}

TEST_F(ConfigBaseTest, NamesProblemsOfTheBaseInTheBase) {
  write("base.yaml", "model: {hiden: 8}\n");
  const std::string top = write("top.yaml", "base: base.yaml\nmodel: {layers: 8}\n");

  EXPECT_THAT(
      problems_of([&] { load_config(top, {}); }),
      ElementsAre(path("base.yaml") + ":1:9: unknown key model.hiden; did you mean model.hidden?",
                  top + ":2:9: unknown key model.layers"));
}

TEST_F(ConfigBaseTest, AValueThatIsReplacedIsNotChecked) {
  write("base.yaml", "model: {hidden: wide}\n");
  const std::string top = write("top.yaml", "base: base.yaml\nmodel: {hidden: 8}\n");

  EXPECT_EQ(load_config(top, {}).config.model.hidden, 8);
}

TEST(ConfigOverrideTest, TakesListsAndQuotedText) {
  TemporaryFolder folder;
  const auto path = folder.path() / "run.yaml";
  write_file(path, "model: {hidden: 8}\n");

  const RunConfig config =
      load_config(path.string(), {"data.text=[a, b]", "run.dir=\"x=y\""}).config;

  EXPECT_THAT(config.data.text, ElementsAre("a", "b"));
  EXPECT_EQ(config.run.dir, "x=y");
}

TEST(ConfigOverrideTest, NamesUnknownKeys) {
  EXPECT_THAT(problems_with({"model.hiden=8"}),
              ElementsAre("'model.hiden=8': unknown key model.hiden; did you mean model.hidden?"));
}

TEST(ConfigOverrideTest, NamesSectionsAndBases) {
  EXPECT_THAT(problems_with({"model=8", "base=x.yaml"}),
              ElementsAre("'model=8': model is a section, not a value",
                          ::testing::StartsWith("'base=x.yaml': base is read from files alone")));
}

TEST(ConfigOverrideTest, NamesWhatIsNoAssignment) {
  EXPECT_THAT(problems_with({"model.hidden", "=8"}),
              ElementsAre("'model.hidden': expected key.sub=value, such as train.max_steps=100",
                          "'=8': expected key.sub=value, such as train.max_steps=100"));
}

TEST(ConfigOverrideTest, NamesMissingAndMistypedValuesAndBrokenYaml) {
  EXPECT_THAT(problems_with({"model.hidden=", "model.num_layers=two", "data.text=[a"}),
              ElementsAre("command line: model.hidden: expected a value, not nothing",
                          ::testing::StartsWith("'data.text=[a': "),
                          "command line: model.num_layers: expected an integer, not 'two'"));
}

TEST(ConfigSourcesTest, TakeAPathOrAListOfPathsWeightsAndNames) {
  const auto sources_of = [](const std::string& value) {
    const RunConfig config = parse_config("data: {train: " + value + "}\n", "x").config;
    std::string text;
    for (const auto& [path, weight, name] : config.data.train) {
      text += fmt::format("{}|{}|{} ", path, weight, name);
    }
    EXPECT_EQ(to_yaml(parse_config(to_yaml(config), "stored").config), to_yaml(config));
    return text;
  };

  EXPECT_EQ(sources_of("a.h5"), "a.h5|1| ");
  EXPECT_EQ(sources_of("\"\""), "");
  EXPECT_EQ(sources_of("[]"), "");
  EXPECT_EQ(sources_of("[a.h5, b.h5]"), "a.h5|1| b.h5|1| ");
  EXPECT_EQ(sources_of("[{path: a.h5, weight: 0.7}, {path: b.h5, weight: 2e-1, name: web}]"),
            "a.h5|0.7| b.h5|0.2|web ");
}

TEST(ConfigSourcesTest, ASingleFileIsPrintedAsBefore) {
  RunConfig config;
  config.data.train = {{"a b.h5"}};

  EXPECT_THAT(to_yaml(config), ::testing::HasSubstr("  train: \"a b.h5\"\n  validation: \"\"\n"));
}

TEST(ConfigSourcesTest, NameWhatIsWrongWithAFile) {
  const auto problem = [](const std::string& value) {
    const auto problems = problems_with({"data.train=" + value});
    return problems.size() == 1 ? problems[0] : fmt::format("{} problems", problems.size());
  };
  const auto says = [](const std::string& text) { return "command line: data.train: " + text; };

  EXPECT_EQ(problem("[{path: a, weight: 0}]"),
            says("a: weight must be from 1e-06 to 1000000, not 0"));
  EXPECT_EQ(problem("[{path: a, weight: -1}]"),
            says("a: weight must be from 1e-06 to 1000000, not -1"));
  EXPECT_EQ(problem("[{path: a, weight: nan}]"), says("a: weight expected a number, not 'nan'"));
  EXPECT_EQ(problem("[{path: a, wait: 1}]"),
            says("a: unknown key wait; a file has path, weight and name"));
  EXPECT_EQ(problem("[{path: a, path: b}]"), says("a: path is given twice"));
  EXPECT_EQ(problem("[{weight: 1}]"), says("a file of the list has no path"));
  EXPECT_EQ(problem("[[a]]"), says("expected a list of values"));
  EXPECT_EQ(problem("{path: a}"), says("expected a value, not keys below it"));
  EXPECT_THAT(problems_with({"data.text=[{path: a}]"}),
              ElementsAre("command line: data.text: expected a list of values"));
}

}  // namespace
}  // namespace switchyard
