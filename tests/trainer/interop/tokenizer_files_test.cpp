#include "trainer/interop/tokenizer_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>

#include <nlohmann/json.hpp>
#include <unordered_map>

#include "tests/support/equal_scores.h"
#include "tests/support/error_of.h"
#include "tests/support/mixed_text.h"
#include "tests/support/temporary_folder.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {
namespace {

using nlohmann::json;
using test::error_of;
using ::testing::HasSubstr;

class TokenizerFilesTest : public ::testing::Test {
 protected:
  // A model of SentencePiece's own trainer.
  TokenizerSection trained(std::unordered_map<std::string, std::string> options) {
    std::string text;
    std::minstd_rand engine(3);
    for (int i = 0; i < 300; ++i) text += test::mixed_line(engine) + "\n";
    const auto input = folder_.path() / "text";
    test::write_file(input, text);
    options.insert({{"input", input},
                    {"vocab_size", "4000"},
                    {"minloglevel", "2"},
                    {"num_threads", "1"},
                    {"hard_vocab_limit", "false"},
                    {"character_coverage", "0.98"}});
    std::string serialized;
    const auto status = sentencepiece::SentencePieceTrainer::Train(options, nullptr, &serialized);
    EXPECT_TRUE(status.ok()) << status.ToString();
    test::write_file(folder_.path() / "trained.model", serialized);
    return {TokenizerType::sentencepiece, folder_.path() / "trained.model", 0};
  }

  // Writes the files and reads them with the library.
  std::unique_ptr<Tokenizer> written(const TokenizerSection& config) {
    const auto out = folder_.path() / "out";
    std::filesystem::create_directories(out);
    write_tokenizer_files(config, out);
    return make_tokenizer({TokenizerType::huggingface, out / "tokenizer.json", 0});
  }

  void expect_same_ids(const TokenizerSection& config) {
    const auto ours = make_tokenizer(config), theirs = written(config);
    EXPECT_EQ(theirs->vocab_size(), ours->vocab_size());
    EXPECT_EQ(theirs->end_of_document(), ours->end_of_document());
    int other_texts = 0;
    for (const std::string& line : test::mixed_lines(/*seed=*/11)) {
      const std::vector<int32_t> ids = ours->encode(line);
      ASSERT_EQ(theirs->encode(line), ids) << testing::PrintToString(line);
      // What stands for unknown text differs: " \u2047 ", and the piece's own name.
      const bool known = ours->encode_checked(line).unknown == 0;
      other_texts += known && theirs->decode(ids) != ours->decode(ids);
    }
    EXPECT_EQ(other_texts, 0);
  }

  test::TemporaryFolder folder_;
};

TEST_F(TokenizerFilesTest, BytesKeepTheirIds) {
  expect_same_ids({});
  std::string all;
  for (uint32_t character = 0; character < 0x110000; character += character < 0x1000 ? 1 : 97) {
    if (character < 0xD800 || character > 0xDFFF) test::append_utf8(all, character);
  }

  const auto ours = make_tokenizer({}), theirs = written({});

  EXPECT_EQ(theirs->encode(all), ours->encode(all));
  EXPECT_EQ(theirs->decode(ours->encode(all)), all);
  EXPECT_EQ(json::parse(test::read_file(folder_.path() / "out/tokenizer_config.json"))["eos_token"],
            "<|endoftext|>");
}

TEST_F(TokenizerFilesTest, RecallWordsKeepTheirIds) {
  const TokenizerSection config{TokenizerType::recall, "", 0};
  const std::string text = "set k17 v3 f0 ask k17 v3";
  const auto ours = make_tokenizer(config), theirs = written(config);

  EXPECT_EQ(theirs->encode(text), ours->encode(text));
  EXPECT_EQ(theirs->decode(ours->encode(text)), text);
  EXPECT_EQ(theirs->end_of_document(), ours->end_of_document());
  EXPECT_EQ(theirs->vocab_size(), ours->vocab_size());
}

TEST_F(TokenizerFilesTest, ATrainedModelKeepsItsIds) {
  std::vector<std::string> lines = test::mixed_lines(/*seed=*/2);
  lines.resize(400);
  const TokenizerSection config{TokenizerType::sentencepiece, folder_.path() / "sp.model", 0};
  train_sentencepiece(
      [&, next = size_t{0}]() mutable -> std::optional<std::string> {
        if (next == lines.size()) return std::nullopt;
        return lines[next++];
      },
      /*vocab_size=*/3500, config.model);

  expect_same_ids(config);
  EXPECT_EQ(test::read_file(folder_.path() / "out/tokenizer.model"), test::read_file(config.model));
}

TEST_F(TokenizerFilesTest, BpeModelsMadeElsewhereKeepTheirIds) {
  expect_same_ids(trained({{"model_type", "bpe"}}));
  expect_same_ids(trained({{"model_type", "bpe"},
                           {"byte_fallback", "true"},
                           {"normalization_rule_name", "identity"},
                           {"remove_extra_whitespaces", "false"}}));
  expect_same_ids(trained({{"model_type", "bpe"},
                           {"byte_fallback", "true"},
                           {"user_defined_symbols", "expert,exp,[(*)],<unk2>"}}));
}

TEST_F(TokenizerFilesTest, WhatTheLibraryCannotFollowIsRefused) {
  for (const auto& [type, suffix, message] :
       {std::tuple{"unigram", "false", "unigram models have no equal: the library adds scores"},
        {"word", "false", "only models of the type bpe"},
        {"char", "false", "only models of the type bpe"},
        {"bpe", "true", "treat_whitespace_as_suffix has no equal"}}) {
    const TokenizerSection config =
        trained({{"model_type", type}, {"treat_whitespace_as_suffix", suffix}});
    EXPECT_THAT(
        error_of([&] { written(config); }),
        AllOf(HasSubstr("trained.model cannot become a tokenizer.json"), HasSubstr(message)));
    EXPECT_FALSE(std::filesystem::exists(folder_.path() / "out/tokenizer.json"));
  }
}

// The library takes the pair that is listed first, SentencePiece the leftmost one.
TEST_F(TokenizerFilesTest, PiecesOfOneScoreAreRefused) {
  const TokenizerSection config = trained({{"model_type", "bpe"}});
  test::write_file(config.model, test::with_equal_scores(test::read_file(config.model)));

  EXPECT_THAT(error_of([&] { written(config); }),
              testing::ContainsRegex("trained.model cannot become a tokenizer.json: pieces of one "
                                     "score \\(.* and others\\) have no equal"));
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / "out/tokenizer.json"));
}

TEST_F(TokenizerFilesTest, FilesOfALibraryAreCopied) {
  written({});
  const auto source = folder_.path() / "source", out = folder_.path() / "out";
  std::filesystem::rename(out, source);
  test::write_file(source / "chat_template.jinja", "{{ messages }}");
  const TokenizerSection config{TokenizerType::huggingface, source / "tokenizer.json", 0};

  written(config);

  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    EXPECT_EQ(test::read_file(out / name), test::read_file(source / name)) << name;
  }
}

TEST_F(TokenizerFilesTest, ADocumentEndOfTheConfigurationIsWritten) {
  written({});
  const auto source = folder_.path() / "source", out = folder_.path() / "out";
  std::filesystem::rename(out, source);
  const TokenizerSection config{TokenizerType::huggingface, source / "tokenizer.json", 0, "a"};
  EXPECT_EQ(make_tokenizer(config)->end_of_document(), 'a');

  EXPECT_EQ(written(config)->end_of_document(), 'a');
  std::filesystem::remove(source / "tokenizer_config.json");
  EXPECT_EQ(written(config)->end_of_document(), 'a');
  // Without both, the id in generation_config.json becomes the text of its token.
  test::write_file(source / "generation_config.json", R"({"eos_token_id": 98})");
  EXPECT_EQ(written({TokenizerType::huggingface, config.model, 0})->end_of_document(), 'b');
}

}  // namespace
}  // namespace switchyard
