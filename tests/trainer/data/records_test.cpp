#include "trainer/data/records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/data/corpus.h"
#include "trainer/data/encode_document.h"
#include "trainer/data/token_file.h"
#include "trainer/data/tokenize.h"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

Document parse(const std::string& line, const RecordRules& rules,
               std::vector<std::string>* other_keys = nullptr) {
  std::vector<std::string> ignored;
  return parse_record(line, "a.jsonl:1", rules, other_keys ? *other_keys : ignored);
}

TEST(RecordTest, TheFieldOfTheTextMayLieInObjects) {
  const RecordRules rules = {.field = "body.raw"};
  std::vector<std::string> others;

  const std::string line =
      R"({"id": 1, "raw": "x", "list": [{"body": {"raw": "x"}}],
          "body": {"raw": "the text", "n": {"raw": "x"}}, "text": "x"})";
  EXPECT_EQ(parse(line, rules, &others).text, "the text");
  EXPECT_THAT(others, ElementsAre("id", "raw", "list", "text"));
  for (const char* lacking : {R"({"body": "the text"})", R"({"body": {"raw": 7}})",
                              R"({"body": [{"raw": "x"}]})", R"({"body": {"raw": ["x"]}})",
                              R"({"body": {"raw": {"raw": "x"}}})", R"({"body.raw": ""})"}) {
    EXPECT_THAT(error_of([&] { parse(lacking, rules); }),
                HasSubstr("a.jsonl:1: the object has no string \"body.raw\""))
        << lacking;
  }
  EXPECT_THAT(error_of([&] { parse(R"({"body": {"raw": "x"}, "body": {"raw": "y"}})", rules); }),
              HasSubstr("two strings \"body.raw\""));
}

TEST(RecordTest, ACompletionIsLearnedAndItsPromptIsNot) {
  const RecordRules rules = {.form = RecordForm::prompt_completion};

  const Document document = parse(R"({"completion": "4", "prompt": "2+2=", "id": 3})", rules);

  EXPECT_EQ(document.text, "2+2=4");
  EXPECT_THAT(document.segments, ElementsAre(Segment{4, false}, Segment{5, true}));
  EXPECT_THAT(error_of([&] { parse(R"({"prompt": "2+2="})", rules); }),
              HasSubstr("no string \"completion\""));
}

TEST(RecordTest, SegmentsSayWhatIsLearned) {
  const RecordRules rules = {.form = RecordForm::segments, .field = "chat"};

  const Document document = parse(
      R"({"chat": [{"text": "Q: ä?", "learn": false, "meta": [{"text": "x"}]},
          {"learn": true, "text": ""}, {"text": " A", "learn": true}], "text": "x"})",
      rules);

  EXPECT_EQ(document.text, "Q: ä? A");
  EXPECT_THAT(document.segments,
              ElementsAre(Segment{6, false}, Segment{6, true}, Segment{8, true}));
  for (const char* wrong :
       {R"({"chat": [{"text": "a", "learn": true}, {"text": "b"}]})",
        R"({"chat": [{"text": "a", "learn": true}, {"text": 5, "learn": true}]})",
        R"({"chat": [{"text": "a", "learn": true}, {"text": "b", "learn": 1}]})",
        R"({"chat": [{"text": "a", "learn": true}, {"text": "b", "learn": true, "text": "c"}]})",
        R"({"chat": [{"text": "a", "learn": true}, ["b", true]]})",
        R"({"chat": [{"text": "a", "learn": true}, "b"]})",
        R"({"chat": [{"text": "a", "learn": true}, {}]})"}) {
    EXPECT_THAT(error_of([&] { parse(wrong, rules); }),
                HasSubstr("a.jsonl:1: item 2 of \"chat\" is not an object with"))
        << wrong;
  }
  EXPECT_THAT(error_of([&] { parse(R"({"chat": "text"})", rules); }),
              HasSubstr("no list \"chat\""));
  EXPECT_THAT(error_of([&] { parse(R"({"chat": [], "chat": []})", rules); }),
              HasSubstr("two lists \"chat\""));
}

TEST(RecordTest, NoDepthIsTooDeep) {
  const std::string deep(1 << 20, '[');
  EXPECT_THAT(error_of([&] { parse("{\"x\": " + deep, {}); }), HasSubstr("is no JSON"));
  EXPECT_EQ(
      parse("{\"x\": " + deep + std::string(deep.size(), ']') + ", \"text\": \"a\"}", {}).text,
      "a");
}

class RecordFilesTest : public ::testing::Test {
 protected:
  void put(const std::string& text) { test::write_file(text_path(), text); }
  std::string text_path() const { return (folder_.path() / "a.jsonl").string(); }

  DataSection config(RecordForm form) const {
    DataSection data;
    data.train = {{(folder_.path() / "train.h5").string()}};
    data.text = {text_path()};
    data.record = form;
    return data;
  }

  test::TemporaryFolder folder_;
  std::ostringstream log_;
};

TEST_F(RecordFilesTest, BadRecordsUpToALimitAreLeftOutCountedAndNamed) {
  put("{\"text\": \"one\"}\n{\"txt\": \"x\"}\n{\"text\": \"caf\xE9\"}\n[1]\nno JSON\n"
      "{\"text\": \"two\"}\n");
  DataSection data = config(RecordForm::text);
  const auto error = [&] { return error_of([&] { tokenize(data, log_); }); };

  EXPECT_THAT(error(), AllOf(HasSubstr("a.jsonl:2: the object has no string \"text\""),
                             Not(HasSubstr("max_bad_records"))));
  data.max_bad_records = 3;
  EXPECT_THAT(error(), AllOf(HasSubstr("a.jsonl:5:2: is no JSON"),
                             HasSubstr("one bad record more than data.max_bad_records = 3")));
  EXPECT_FALSE(std::filesystem::exists(data.train[0].path));

  data.max_bad_records = 4;
  EXPECT_EQ(tokenize(data, log_).documents, 2);
  EXPECT_THAT(log_.str(),
              AllOf(HasSubstr("left out: 4 bad records: " + text_path() +
                              ":2: the object has no string \"text\", " + text_path() +
                              ":3: byte 13 (0xe9) is not UTF-8"),
                    HasSubstr(":4: is not a JSON object, but an array"), Not(HasSubstr(".cpp"))));
  EXPECT_EQ(TokenFile(data.train[0].path).num_documents(), 2);
}

TEST_F(RecordFilesTest, ALineOverTheLimitIsABadRecord) {
  const std::string text(100'000'000, 'x');
  put("{\"text\": \"" + text + "\"}\n{\"text\": \"short\"}\n");
  DataSection data = config(RecordForm::text);

  EXPECT_THAT(error_of([&] { tokenize(data, log_); }),
              HasSubstr("a.jsonl:1: the line is longer than 64 MiB; make shorter documents of it"));
  data.max_bad_records = 1;
  EXPECT_EQ(tokenize(data, log_).documents, 1);
}

// A line of 10 MB, whose text is the last of 600,000 values; and records that all have other keys.
TEST_F(RecordFilesTest, AnyNumberOfKeysIsReadAndTheFirstHundredAreNamed) {
  std::string line = "{", short_lines;
  for (int i = 0; i < 600'000; ++i) line += fmt::format("\"key{}\": {}, ", i, i);
  for (int i = 0; i < 1'000; ++i)
    short_lines += fmt::format("{{\"k{}\": 0, \"text\": \"b\"}}\n", i);
  put(line + "\"text\": \"a\"}\n" + short_lines);
  DataSection data = config(RecordForm::text);

  EXPECT_EQ(tokenize(data, log_).documents, 1'001);

  const std::string log = log_.str();
  EXPECT_THAT(log, AllOf(HasSubstr("left out: \"key99\" of 1 record, which is not their text"),
                         Not(HasSubstr("\"key100\"")),
                         HasSubstr("left out: 600900 values under other names, which are not")));
  EXPECT_LT(std::ranges::count(log, '\n'), 110);
  put(line + "\"text\": \"a\", \"key7\": 0, \"text\": \"b\"}\n");
  EXPECT_THAT(error_of([&] { tokenize(data, log_); }),
              HasSubstr("a.jsonl:1: the object has two strings \"text\""));
}

TEST_F(RecordFilesTest, TheMaskLinesUpWithTheTokensOfEachSegment) {
  put("{\"prompt\": \"2+2=\", \"completion\": \"4!\"}\n{\"prompt\": \"?\", \"completion\": "
      "\"\"}\n");
  const DataSection data = config(RecordForm::prompt_completion);

  tokenize(data, log_);

  TokenFile file(data.train[0].path);
  std::vector<int32_t> tokens(static_cast<size_t>(file.num_tokens()));
  std::vector<uint8_t> mask(tokens.size());
  file.read(0, tokens);
  file.read_loss_mask(0, mask);
  EXPECT_THAT(tokens, ElementsAre('2', '+', '2', '=', '4', '!', 256, '?', 256));
  EXPECT_THAT(mask, ElementsAre(0, 0, 0, 0, 1, 1, 1, 0, 1));
}

TEST_F(RecordFilesTest, WhatIsLearnedDecidesWhetherAFileIsUpToDate) {
  const auto log_with = [&](const char* learn) {
    put(std::string(R"({"text": [{"text": "a", "learn": )") + learn + "}]}\n");
    log_.str("");
    tokenize(config(RecordForm::segments), log_);
    return log_.str();
  };
  log_with("true");

  EXPECT_THAT(log_with("true"), HasSubstr("up to date"));
  EXPECT_THAT(log_with("false"), HasSubstr("made from other data"));
}

TEST_F(RecordFilesTest, DocumentsWithSegmentsAreHeldOutWhole) {
  put("{\"prompt\": \"another question\", \"completion\": \"x\"}\n");
  DataSection data = config(RecordForm::prompt_completion);
  data.validation = {{(folder_.path() / "validation.h5").string()}};
  data.validation_share = 0.5;

  // One document is in one part, and its hash decides in which.
  EXPECT_THAT(error_of([&] { tokenize(data, log_); }),
              AllOf(HasSubstr("data.text has too few documents: none of them is held out for "
                              "data.validation; give more documents, raise data.validation_share"),
                    Not(HasSubstr(".tmp"))));
  EXPECT_FALSE(std::filesystem::exists(data.train[0].path));
  EXPECT_FALSE(std::filesystem::exists(data.validation[0].path));
  put("{\"prompt\": \"a long question\", \"completion\": \"answer\"}\n");
  EXPECT_THAT(error_of([&] { tokenize(data, log_); }),
              HasSubstr("all of them are held out, and none is left for data.train; give more "
                        "documents or lower data.validation_share"));
  EXPECT_FALSE(std::filesystem::exists(data.validation[0].path));
}

TEST_F(RecordFilesTest, AFileWithoutRecordsHasNoPrompts) {
  DataSection data = config(RecordForm::prompt_completion);
  data.text = {(folder_.path() / "a.txt").string()};
  test::write_file(data.text[0], "text");

  EXPECT_THAT(error_of([&] { tokenize(data, log_); }),
              HasSubstr("a.txt is one text, but data.record=prompt_completion reads .jsonl"));
}

// Pieces of two letters, so that a boundary changes the tokens.
class PairTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> tokens;
    for (size_t i = 0; i < text.size(); i += 2) {
      tokens.push_back(text[i] * 256 + (i + 1 < text.size() ? text[i + 1] : 0));
    }
    return tokens;
  }
  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    for (const int32_t token : tokens) {
      text += static_cast<char>(token / 256);
      if (token % 256 != 0) text += static_cast<char>(token % 256);
    }
    return text;
  }
  TokenizerType type() const override { return TokenizerType::byte; }
  int64_t vocab_size() const override { return 65536; }
  int32_t end_of_document() const override { return 0; }
  const std::string& hash() const override { return hash_; }

 private:
  std::string hash_;
};

TEST(EncodeDocumentTest, NoTokenLiesInTwoSegments) {
  const Document document{
      .text = "abcdefg", .place = "", .segments = {{3, false}, {3, true}, {5, true}, {7, false}}};

  const auto [encoding, mask] = encode_document(PairTokenizer(), document);

  EXPECT_THAT(encoding.tokens,
              ElementsAre('a' * 256 + 'b', 'c' * 256, 'd' * 256 + 'e', 'f' * 256 + 'g'));
  EXPECT_THAT(mask, ElementsAre(0, 0, 1, 0, 0));
  EXPECT_FALSE(encoding.changed_at);
}

}  // namespace
}  // namespace switchyard
