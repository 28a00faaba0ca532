#include "trainer/data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <array>
#include <optional>
#include <random>
#include <unordered_map>

#include "kernels/runtime/check.h"
#include "tests/support/equal_scores.h"
#include "tests/support/error_of.h"
#include "tests/support/mixed_text.h"
#include "tests/support/temporary_folder.h"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

// Words in random order, a function of the seed.
std::string generated_text(int lines, uint32_t seed = 1) {
  constexpr std::array<const char*, 12> kWords = {"expert", "token",   "router", "gradient",
                                                  "the",    "of",      "a",      "shrink",
                                                  "before", "travels", "grows",  "back"};
  std::minstd_rand engine(seed);
  std::string text;
  for (int line = 0; line < lines; ++line) {
    text.append(engine() % 3 * 4, ' ');
    for (int word = 0; word < 8; ++word) {
      text += kWords[engine() % kWords.size()];
      text += word == 7 ? ".\n" : " ";
    }
  }
  return text;
}

LineSource lines_of(std::string text) {
  return [text = std::move(text), begin = size_t{0}]() mutable -> std::optional<std::string> {
    if (begin >= text.size()) return std::nullopt;
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    return line;
  };
}

class SentencePieceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    train_sentencepiece(lines_of(generated_text(300)), kVocabSize, config_.model);
  }

  static constexpr int64_t kVocabSize = 320;
  test::TemporaryFolder folder_;
  TokenizerSection config_{TokenizerType::sentencepiece, folder_.path() / "sp.model", kVocabSize};
};

TEST(ByteTokenizerTest, EveryByteComesBack) {
  const auto tokenizer = make_tokenizer({});
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text.push_back(static_cast<char>(byte));

  const auto tokens = tokenizer->encode(text);

  EXPECT_EQ(tokenizer->decode(tokens), text);
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(*std::ranges::max_element(tokens), 255);
}

TEST(ByteTokenizerTest, EndOfDocumentIsNoText) {
  const auto tokenizer = make_tokenizer({});

  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{72, tokenizer->end_of_document(), 105}), "Hi");
  EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{257}), Error);
  EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{-1}), Error);
}

TEST_F(SentencePieceTest, TextsComeBackFromFewTokens) {
  const auto tokenizer = make_tokenizer(config_);
  const std::string text = generated_text(20, /*seed=*/9);

  const auto tokens = tokenizer->encode(text);

  EXPECT_EQ(tokenizer->decode(tokens), text);
  EXPECT_LT(tokens.size() * 2, text.size());
  EXPECT_EQ(tokenizer->vocab_size(), kVocabSize);
}

TEST_F(SentencePieceTest, UnseenTextComesBackByBytes) {
  const auto tokenizer = make_tokenizer(config_);

  for (const std::string text : {"", " ", "  two  spaces ", "\n\n\ttab\r\n",
                                 "größer — 漢字 🙂", "<unk></s><0x0A>", "1234"}) {
    const auto tokens = tokenizer->encode(text);
    EXPECT_EQ(tokenizer->decode(tokens), text);
    EXPECT_EQ(std::ranges::count(tokens, tokenizer->end_of_document()), 0) << text;
  }
}

// SentencePiece can normalise text; these models do not.
TEST_F(SentencePieceTest, EveryCharacterComesBackByteForByte) {
  const auto tokenizer = make_tokenizer(config_);
  std::vector<std::string> texts = {std::string("a\0b\0", 4),
                                    "\r\nCRLF\r\n",
                                    "lone\rCR",
                                    "\ttabs\t\t",
                                    "   ",
                                    " x ",
                                    "a   b",
                                    "\uFEFFmark",
                                    "a\uFEFFb",
                                    "\u2028\u2029\u0085",
                                    "e\u0301 \u00e9",
                                    "\uFB01 \u2460 \uFF21 \u00BD",
                                    "\u00A0\u3000\u200B\u00AD",
                                    "\uFFFD",
                                    "\U0010FFFF",
                                    "\u1100\u1161 \uAC00",
                                    "<s></s><pad><unk>",
                                    "\u2585 \u2047"};
  for (char control = 1; control < 32; ++control) texts.push_back(std::string("a") + control + "b");

  for (const std::string& text : texts) {
    for (const std::string& whole :
         {text, text + text, generated_text(3) + text + generated_text(2)}) {
      const Encoding encoding = tokenizer->encode_checked(whole);
      EXPECT_EQ(tokenizer->decode(encoding.tokens), whole);
      EXPECT_EQ(encoding.tokens, tokenizer->encode(whole));
      EXPECT_FALSE(encoding.changed_at.has_value()) << whole;
      EXPECT_EQ(encoding.unknown, 0) << whole;
    }
  }
}

TEST_F(SentencePieceTest, TheMarkForASpaceIsTheOnlyCharacterThatDoesNotComeBack) {
  const auto tokenizer = make_tokenizer(config_);
  const std::string text = generated_text(1200, /*seed=*/6);  // of several blocks

  EXPECT_EQ(tokenizer->encode_checked(text + "\u2581").changed_at, text.size());
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\u2581b")), "a b");
  EXPECT_FALSE(tokenizer->encode_checked(text).changed_at.has_value());
  EXPECT_FALSE(make_tokenizer({})->encode_checked("a\u2581\xFF").changed_at.has_value());
}

TEST_F(SentencePieceTest, AModelMadeElsewhereThatChangesTextIsFoundOut) {
  const auto text = folder_.path() / "text.txt";
  test::write_file(text, generated_text(300));
  const auto status =
      sentencepiece::SentencePieceTrainer::Train({{"input", text},
                                                  {"model_prefix", folder_.path() / "foreign"},
                                                  {"model_type", "bpe"},
                                                  {"vocab_size", "60"},
                                                  {"num_threads", "1"},
                                                  {"minloglevel", "2"}});
  ASSERT_TRUE(status.ok()) << status.ToString();
  const auto tokenizer =
      make_tokenizer({TokenizerType::sentencepiece, folder_.path() / "foreign.model", 0});

  EXPECT_FALSE(tokenizer->encode_checked("the token").changed_at.has_value());
  const Encoding spaces = tokenizer->encode_checked("the  token");
  EXPECT_EQ(spaces.changed_at, 4u);
  EXPECT_EQ(spaces.unknown, 0);
  const Encoding unknown = tokenizer->encode_checked("the ü ü token");
  EXPECT_EQ(unknown.changed_at, 4u);
  EXPECT_EQ(unknown.unknown, 2);
}

// Generation decodes and prints one token at a time.
TEST_F(SentencePieceTest, TokensDecodeOneByOne) {
  const auto tokenizer = make_tokenizer(config_);
  const std::string text = generated_text(3, /*seed=*/4);

  std::string pieces;
  for (const int32_t token : tokenizer->encode(text)) {
    pieces += tokenizer->decode(std::vector<int32_t>{token});
  }

  EXPECT_EQ(pieces, text);
}

// Texts of several blocks, with all characters at which a block can be cut or must not be cut.
std::vector<std::string> long_texts() {
  const std::string lines = generated_text(1200, /*seed=*/6);
  std::string one_line = lines, no_space = lines, odd = lines;
  std::ranges::replace(one_line, '\n', ' ');
  std::ranges::replace(no_space, ' ', '\n');
  constexpr std::array<const char*, 6> kOdd = {"\u2581", "\u3000", "\xC3", " \n ", "größer", "\t"};
  std::minstd_rand engine(8);
  for (size_t at = 0; at < odd.size(); at += 1 + engine() % 20) {
    odd.insert(at, kOdd[engine() % kOdd.size()]);
  }
  std::string marks = "a";
  for (int i = 0; i < 10000; ++i) marks += "\u2581 ";
  return {lines,
          one_line,
          no_space,
          odd,
          marks,
          "a" + std::string(40000, ' '),
          std::string(40000, 'a')};
}

void expect_tokens_of_the_library(const TokenizerSection& config,
                                  const std::vector<std::string>& texts = long_texts()) {
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.Load(config.model).ok());
  const auto tokenizer = make_tokenizer(config);
  for (const std::string& text : texts) {
    std::vector<int> whole;
    ASSERT_TRUE(library.Encode(text, &whole).ok());
    EXPECT_TRUE(tokenizer->encode(text) == whole) << text.substr(0, 80);
  }
}

TEST_F(SentencePieceTest, LongTextsHaveTheTokensThatTheLibraryGivesThemWhole) {
  expect_tokens_of_the_library(config_);
}

// The models add a space before each text, remove spaces, or have pieces that span spaces.
TEST_F(SentencePieceTest, LongTextsAreRightWithModelsMadeElsewhere) {
  const auto text = folder_.path() / "text.txt";
  test::write_file(text, generated_text(300));
  using Options = std::unordered_map<std::string, std::string>;
  for (const Options& options : {Options{}, Options{{"add_dummy_prefix", "false"}},
                                 Options{{"add_dummy_prefix", "false"},
                                         {"remove_extra_whitespaces", "false"},
                                         {"normalization_rule_name", "identity"},
                                         {"split_by_whitespace", "false"},
                                         {"vocab_size", "600"}}}) {
    Options all = options;
    all.insert({{"input", text},
                {"model_prefix", folder_.path() / "foreign"},
                {"model_type", "bpe"},
                {"vocab_size", "320"},
                {"byte_fallback", "true"},
                {"num_threads", "1"},
                {"minloglevel", "2"}});
    const auto status = sentencepiece::SentencePieceTrainer::Train(all);
    ASSERT_TRUE(status.ok()) << status.ToString();

    expect_tokens_of_the_library(
        {TokenizerType::sentencepiece, folder_.path() / "foreign.model", 0});
  }
}

// Then the leftmost of all pairs is joined first.
TEST_F(SentencePieceTest, LongTextsAreRightWithPiecesOfOneScore) {
  std::string text;
  for (const std::string& line : test::mixed_lines(/*seed=*/4)) text += line + "\n";
  train_sentencepiece(lines_of(text), 3500, config_.model);
  config_.vocab_size = 0;
  const std::vector<int32_t> before = make_tokenizer(config_)->encode(text);
  test::write_file(config_.model, test::with_equal_scores(test::read_file(config_.model)));

  expect_tokens_of_the_library(config_, {text});

  EXPECT_NE(make_tokenizer(config_)->encode(text), before);
}

TEST_F(SentencePieceTest, EndOfDocumentIsNoText) {
  const auto tokenizer = make_tokenizer(config_);
  auto tokens = tokenizer->encode("the token");
  tokens.push_back(tokenizer->end_of_document());

  EXPECT_EQ(tokenizer->decode(tokens), "the token");
  EXPECT_THAT(error_of([&] { tokenizer->decode(std::vector<int32_t>{kVocabSize}); }),
              HasSubstr("outside the vocabulary"));
}

TEST_F(SentencePieceTest, TheSameLinesGiveTheSameModel) {
  const auto again = folder_.path() / "again.model";

  train_sentencepiece(lines_of(generated_text(300)), kVocabSize, again);

  EXPECT_EQ(test::read_file(again), test::read_file(config_.model));
}

TEST_F(SentencePieceTest, HashesTellModelsApart) {
  const TokenizerSection other{TokenizerType::sentencepiece, folder_.path() / "other.model", 0};
  train_sentencepiece(lines_of(generated_text(300)), kVocabSize - 1, other.model);

  EXPECT_NE(make_tokenizer(config_)->hash(), make_tokenizer(other)->hash());
  EXPECT_NE(make_tokenizer(config_)->hash(), make_tokenizer({})->hash());
  EXPECT_EQ(make_tokenizer(config_)->hash(), make_tokenizer(config_)->hash());
}

TEST_F(SentencePieceTest, LongLinesAreLearntFromToo) {
  std::string text = generated_text(300);
  std::ranges::replace(text, '\n', ' ');
  const auto model = folder_.path() / "long.model";

  train_sentencepiece(lines_of(text), kVocabSize, model);

  EXPECT_TRUE(std::filesystem::exists(model));
}

TEST_F(SentencePieceTest, AModelOfAnotherSizeThanConfiguredIsAnError) {
  config_.vocab_size = 500;

  EXPECT_THAT(error_of([&] { make_tokenizer(config_); }),
              ::testing::AllOf(HasSubstr("320 pieces"), HasSubstr("500")));
}

// Models of other programs normalize text by a table, which the library follows unchecked.
TEST_F(SentencePieceTest, ADamagedNormalizationTableIsAnError) {
  test::write_file(folder_.path() / "text", generated_text(300));
  const auto status =
      sentencepiece::SentencePieceTrainer::Train({{"input", folder_.path() / "text"},
                                                  {"model_prefix", folder_.path() / "sp"},
                                                  {"vocab_size", "320"},
                                                  {"model_type", "bpe"},
                                                  {"byte_fallback", "true"},
                                                  {"minloglevel", "2"}});
  ASSERT_TRUE(status.ok()) << status.ToString();
  const std::string bytes = test::read_file(config_.model);
  // The name of the rules, then the table: a tag, its length in three bytes, and the trie's size.
  const size_t name = bytes.find("nmt_nfkc");
  ASSERT_NE(name, bytes.npos);
  const size_t table = name + 12, trie = table + 4;
  ASSERT_EQ(bytes[name + 8], 0x12);
  const auto error_with = [&](size_t place, const std::string& damage) {
    test::write_file(config_.model, std::string(bytes).replace(place, damage.size(), damage));
    return error_of([&] { make_tokenizer(config_); });
  };

  EXPECT_EQ(error_with(0, ""), "");
  EXPECT_THAT(error_with(table, "\xff\xff\xff\xff"), HasSubstr("has a trie of 4294967295 bytes"));
  EXPECT_THAT(error_with(trie + 1, "\xff\xff\x7f"), HasSubstr("leads out of its trie"));
  EXPECT_THAT(error_with(trie + 1, "\xff\xff\xff"), HasSubstr("leads out of its texts"));
}

TEST_F(SentencePieceTest, ADamagedModelIsAnError) {
  const std::string bytes = test::read_file(config_.model);

  for (const size_t kept : {size_t{0}, size_t{1}, size_t{10}, bytes.size() / 2, bytes.size() - 1}) {
    test::write_file(config_.model, bytes.substr(0, kept));
    EXPECT_THAT(error_of([&] { make_tokenizer(config_); }), HasSubstr("sp.model")) << kept;
  }
  test::write_file(config_.model, "not a model at all");
  EXPECT_THAT(error_of([&] { make_tokenizer(config_); }), HasSubstr("not a SentencePiece model"));
  std::filesystem::remove(config_.model);
  EXPECT_THAT(error_of([&] { make_tokenizer(config_); }), HasSubstr("No such file"));
}

// The library's trie ends a piece at a zero byte, and would find another piece or throw.
TEST_F(SentencePieceTest, APieceWithAZeroByteIsAnError) {
  const std::string bytes = test::read_file(config_.model), piece = "<unk>";
  const size_t place = bytes.find(piece);
  ASSERT_NE(place, bytes.npos);
  for (const size_t i : {size_t{0}, piece.size() - 1}) {
    std::string damaged = bytes;
    damaged[place + i] = '\0';
    test::write_file(config_.model, damaged);
    EXPECT_THAT(error_of([&] { make_tokenizer(config_); }),
                HasSubstr("damaged: a piece holds a zero byte"));
  }
}

TEST_F(SentencePieceTest, TooLittleTextIsAnErrorThatLeavesNoFile) {
  const auto model = folder_.path() / "none.model";

  EXPECT_THAT(error_of([&] { train_sentencepiece(lines_of("a b\n"), 4000, model); }),
              ::testing::AllOf(HasSubstr("4000 pieces"),
                               HasSubstr("data.tokenizer.vocab_size may be at most 2"),
                               ::testing::Not(HasSubstr("trainer_interface"))));
  EXPECT_THAT(error_of([&] { train_sentencepiece(lines_of(""), 300, model); }),
              HasSubstr("300 pieces"));
  std::string many;
  for (char c = '!'; c <= '~'; ++c) many += std::string(100, c) + '\n';
  EXPECT_THAT(error_of([&] { train_sentencepiece(lines_of(many), 290, model); }),
              ::testing::AllOf(HasSubstr("290 pieces"),
                               HasSubstr("data.tokenizer.vocab_size must be at least 3"),
                               ::testing::Not(HasSubstr("trainer_interface"))));
  EXPECT_FALSE(std::filesystem::exists(model));
}

TEST_F(SentencePieceTest, AnErrorOfTheSourceOfLinesArrives) {
  const LineSource broken = []() -> std::optional<std::string> { fail("line 3 is damaged"); };

  EXPECT_THAT(error_of([&] { train_sentencepiece(broken, 300, folder_.path() / "x.model"); }),
              HasSubstr("line 3 is damaged"));
}

}  // namespace
}  // namespace switchyard
