#include "trainer/recall/text_task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/recall/running_text.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kNoise[] =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
const std::vector<std::string> kText = {"Call me Ishmael.", "It was cold!", "Who goes there?"};

class TextTaskTest : public ::testing::Test {
 protected:
  TextSample sample(TextTask task, int64_t length = 1500, int64_t index = 0) const {
    return make_text_sample(options_, *tokenizer_, kText, task, length, index);
  }
  std::string prompt(const TextSample& sample) const { return tokenizer_->decode(sample.prompt); }

  TextTasksSection options_;
  std::unique_ptr<Tokenizer> tokenizer_ = make_tokenizer({});  // a token per byte
};

int64_t count(const std::string& text, const std::string& part) {
  int64_t found = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++found;
  return found;
}

// The groups of every match of a pattern.
std::vector<std::vector<std::string>> matches(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  std::vector<std::vector<std::string>> found;
  for (std::sregex_iterator it(text.begin(), text.end(), regex), end; it != end; ++it) {
    found.emplace_back(it->begin(), it->end());
  }
  return found;
}

constexpr char kNumberNeedle[] =
    R"(One of the special magic numbers for ([a-z]+-[a-z]+) is: ([0-9]{7})\.)";
constexpr char kUuid[] = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";

TEST_F(TextTaskTest, ASampleIsRulersPromptWordForWord) {
  options_.prefix = "<user>";
  options_.suffix = "<model>";

  const TextSample made = sample(TextTask::niah_single_1, 700);

  const std::string text = prompt(made);
  const auto needles = matches(text, kNumberNeedle);
  ASSERT_EQ(needles.size(), 1u);
  const std::string needle = needles[0][0], key = needles[0][1], value = needles[0][2];
  EXPECT_THAT(made.answers, ElementsAre(value));
  const std::string head =
      "<user>A special magic number is hidden within the following text. Make sure to memorize it. "
      "I "
      "will quiz you about the number afterwards.\n";
  const std::string tail = "\nWhat is the special magic number for " + key +
                           " mentioned in the provided text?<model> The special magic number for " +
                           key + " mentioned in the provided text is";
  const std::string line = std::string(kNoise) + "\n";
  const std::vector<std::string> places = {
      needle + "\n" + line + kNoise, line + needle + "\n" + kNoise, line + kNoise + "\n" + needle};
  EXPECT_THAT(places, ::testing::Contains(
                          text.substr(head.size(), text.size() - head.size() - tail.size())));
  EXPECT_THAT(text, AllOf(StartsWith(head), EndsWith(tail)));
}

TEST_F(TextTaskTest, ASampleIsAFunctionOfItsArguments) {
  const std::vector<int32_t> first = sample(TextTask::niah_multikey_1).prompt;
  EXPECT_EQ(sample(TextTask::niah_multikey_1).prompt, first);

  EXPECT_NE(sample(TextTask::niah_multikey_1, 1500, 1).answers,
            sample(TextTask::niah_multikey_1).answers);
  EXPECT_NE(sample(TextTask::niah_single_2).answers, sample(TextTask::niah_multikey_1).answers);
  options_.seed = 2;
  EXPECT_NE(sample(TextTask::niah_multikey_1).prompt, first);
}

// tests/end_to_end/tasks_test.py has a model that knows this answer.
TEST_F(TextTaskTest, SamplesAreTheSameOnEveryMachine) {
  options_.seed = 11;
  EXPECT_THAT(sample(TextTask::niah_single_1, 700).answers, ElementsAre("1068743"));
}

// A haystack of one sentence more would not fit.
TEST_F(TextTaskTest, PromptAndAnswerFillTheLength) {
  for (const TextTask task : options_.names) {
    for (const int64_t length : {1100, 1101, 1500, 4000}) {
      const int64_t rest = length - std::ssize(sample(task, length).prompt) - answer_tokens(task);

      EXPECT_GE(rest, 0) << to_string(task) << " " << length;
      EXPECT_LT(rest, 140) << to_string(task) << " " << length;  // a needle with two UUIDs
    }
  }
  EXPECT_EQ(answer_tokens(TextTask::niah_single_1), 128);
  EXPECT_EQ(answer_tokens(TextTask::vt), 30);
}

TEST_F(TextTaskTest, ATaskThatDoesNotFitIsAnError) {
  EXPECT_THAT(test::error_of([&] { sample(TextTask::niah_single_1, 400); }),
              HasSubstr("niah_single_1 does not fit 400 tokens: its prompt has"));
}

TEST_F(TextTaskTest, RunningTextGoesOnFromAnySentenceAndBeginsAgain) {
  std::set<size_t> begins;
  for (int64_t i = 0; i < 40; ++i) {
    std::string text = prompt(sample(TextTask::niah_single_2, 700, i));
    const std::string needle = matches(text, kNumberNeedle)[0][0];
    text.erase(text.find(needle), needle.size());
    const std::vector<std::string> hay =
        split_sentences(matches(text, "afterwards\\.\n(.*)\nWhat")[0][1]);
    ASSERT_GT(hay.size(), 10u);
    const auto first = static_cast<size_t>(std::ranges::find(kText, hay[0]) - kText.begin());
    begins.insert(first);
    for (size_t n = 0; n < hay.size(); ++n) EXPECT_EQ(hay[n], kText[(first + n) % 3]);
  }
  EXPECT_EQ(begins.size(), 3u);
}

TEST_F(TextTaskTest, NeedlesStandAnywhere) {
  double sum = 0.0, least = 1.0, most = 0.0;
  for (int64_t i = 0; i < 100; ++i) {
    const std::string text = prompt(sample(TextTask::niah_single_1, 6000, i));
    const double place =
        static_cast<double>(text.find("One of the")) / static_cast<double>(text.size());
    sum += place;
    least = std::min(least, place);
    most = std::max(most, place);
  }
  EXPECT_NEAR(sum / 100, 0.5, 0.1);
  EXPECT_LT(least, 0.1);
  EXPECT_GT(most, 0.9);
}

TEST_F(TextTaskTest, OneOfSeveralKeysIsAskedFor) {
  options_.keys = 5;
  std::set<size_t> places;
  for (int64_t i = 0; i < 40; ++i) {
    const TextSample made = sample(TextTask::niah_multikey_1, 1500, i);

    const std::string text = prompt(made);
    const auto needles = matches(text, kNumberNeedle);
    std::set<std::string> keys, values;
    for (size_t n = 0; n < needles.size(); ++n) {
      keys.insert(needles[n][1]);
      values.insert(needles[n][2]);
      if (needles[n][2] != made.answers[0]) continue;
      places.insert(n);
      EXPECT_THAT(text,
                  HasSubstr("What is the special magic number for " + needles[n][1] + " men"));
    }
    EXPECT_EQ(needles.size(), 5u);
    EXPECT_EQ(keys.size(), 5u);
    EXPECT_EQ(values.size(), 5u);
    EXPECT_EQ(made.answers.size(), 1u);
    EXPECT_EQ(count(text, made.answers[0]), 1);
  }
  EXPECT_EQ(places.size(), 5u);
}

TEST_F(TextTaskTest, TheHaystackOfMultikeyTwoIsOtherNeedles) {
  const TextSample made = sample(TextTask::niah_multikey_2, 3000);

  const std::string text = prompt(made);
  const auto needles = matches(text, kNumberNeedle);
  std::set<std::string> keys;
  for (const auto& needle : needles) keys.insert(needle[1]);
  EXPECT_GT(needles.size(), 35u);
  EXPECT_EQ(keys.size(), needles.size());
  EXPECT_EQ(count(text, "\n"), static_cast<int64_t>(needles.size()) + 1);  // nothing else
  EXPECT_EQ(count(text, made.answers[0]), 1);
}

TEST_F(TextTaskTest, UuidsAreValuesAndKeys) {
  for (const TextTask task : {TextTask::niah_single_3, TextTask::niah_multikey_3}) {
    const TextSample made = sample(task, 1500);

    const std::string text = prompt(made);
    EXPECT_TRUE(std::regex_match(made.answers[0], std::regex(kUuid))) << made.answers[0];
    EXPECT_EQ(count(text, " is: " + made.answers[0] + "."), 1);
    EXPECT_THAT(text, HasSubstr("What is the special magic uuid for "));
    const bool keys = task == TextTask::niah_multikey_3;
    const auto needles = matches(
        text, std::string("magic uuids for ") + (keys ? kUuid : "[a-z]+-[a-z]+") + " is: " + kUuid);
    EXPECT_EQ(needles.size() > 1, keys);
  }
}

TEST_F(TextTaskTest, EveryValueOfAKeyIsAnAnswer) {
  options_.values = 3;

  const TextSample made = sample(TextTask::niah_multivalue);

  const std::string text = prompt(made);
  const auto needles = matches(text, kNumberNeedle);
  ASSERT_EQ(needles.size(), 3u);
  std::vector<std::string> values;
  for (const auto& needle : needles) {
    EXPECT_EQ(needle[1], needles[0][1]);
    values.push_back(needle[2]);
  }
  EXPECT_THAT(made.answers, ::testing::UnorderedElementsAreArray(values));
  EXPECT_THAT(text, StartsWith("Some special magic numbers are hidden within the following text."));
  EXPECT_THAT(text, EndsWith("\nWhat are all the special magic numbers for " + needles[0][1] +
                             " mentioned in the provided text? The special magic numbers for " +
                             needles[0][1] + " mentioned in the provided text are"));
}

TEST_F(TextTaskTest, EveryKeyOfAQueryIsListed) {
  options_.queries = 3;

  const TextSample made = sample(TextTask::niah_multiquery);

  const std::string text = prompt(made);
  const auto asked = matches(
      text, "What are all the special magic numbers for (\\S+), (\\S+), and (\\S+) mentioned");
  ASSERT_EQ(asked.size(), 1u);
  ASSERT_EQ(made.answers.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(count(text, "for " + asked[0][i + 1] + " is: " + made.answers[i] + "."), 1);
  }
  EXPECT_EQ(matches(text, kNumberNeedle).size(), 3u);
}

TEST_F(TextTaskTest, VariablesAreAChainInOrderAfterASolvedExample) {
  options_.prefix = "<user>";
  options_.suffix = "<model>";
  options_.hops = 3;

  const TextSample made = sample(TextTask::vt, 2000);

  const std::string text = prompt(made);
  ASSERT_EQ(made.answers.size(), 4u);
  const auto chain = matches(text, "\nVAR ([A-Z]{5}) = (\\S+)( [A-Z]{5})?(?=\n)");
  ASSERT_EQ(chain.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(chain[i][1], made.answers[i]);
    if (i == 0) continue;
    EXPECT_EQ(chain[i][2] + chain[i][3], "VAR " + made.answers[i - 1]);
  }
  const std::string value = chain[0][2];
  EXPECT_TRUE(std::regex_match(value, std::regex("[0-9]{5}")));
  EXPECT_THAT(text, EndsWith("\nQuestion: Find all variables that are assigned the value " + value +
                             " in the text above.<model> Answer: According to the chain(s) of "
                             "variable assignment in the text above, 4 variables are assigned the "
                             "value " +
                             value + ", they are:"));
  const auto example =
      matches(text, "they are: ([A-Z]{3}) ([A-Z]{3}) ([A-Z]{3}) ([A-Z]{3})\n\nMemorize and track");
  ASSERT_EQ(example.size(), 1u);
  for (size_t i = 1; i < 4; ++i) {
    EXPECT_EQ(count(text, "\nVAR " + example[0][i + 1] + " = VAR " + example[0][i] + "\n"), 1);
  }
  EXPECT_THAT(text, StartsWith("<user>Memorize and track the chain(s) of variable assignment"));
  EXPECT_EQ(count(text, "Memorize and track"), 2);
  EXPECT_EQ(count(text, "<user>"), 1);
}

TEST(FindAnswers, CountsWhatTheTextContainsInAnyCase) {
  EXPECT_THAT(find_answers(" they are: 12 and abc.", {"ABC", "12", "13"}),
              ElementsAre(true, true, false));
  EXPECT_THAT(find_answers("", {"1"}), ElementsAre(false));
}

TEST(SplitSentences, SentencesEndAtTheirMarksAndLineBreaksAreSpaces) {
  EXPECT_THAT(split_sentences("  One, e.g.\none\n\ntwo. Is it 3.5?\tYes!  no end "),
              ElementsAre("One, e.g.", "one two.", "Is it 3.5?", "Yes!", "no end"));
  EXPECT_THAT(split_sentences(" \n"), ElementsAre());
}

class RunningTextTest : public ::testing::Test {
 protected:
  RunningText read(EncodingErrors encoding_errors = EncodingErrors::strict) const {
    return read_running_text({folder_.path().string()}, "tasks.haystack", encoding_errors);
  }
  std::string put(const std::string& name, const std::string& text) const {
    test::write_file(folder_.path() / name, text);
    return (folder_.path() / name).string();
  }

  test::TemporaryFolder folder_;
};

TEST_F(RunningTextTest, WhatIsLeftOutOrChangedIsNamed) {
  put("a.txt", "One. Two.");
  const std::string empty = put("b.txt", ""), latin = put("c.txt", "Caf\xE9.");
  const std::string other = put("notes.tex", "Three.");

  const RunningText text = read(EncodingErrors::replace);

  EXPECT_THAT(text.sentences, ElementsAre("One.", "Two.", "Caf\xEF\xBF\xBD."));
  EXPECT_THAT(text.notes,
              ElementsAre(AllOf(StartsWith("left out: 1 file whose names"), EndsWith(other)),
                          "left out: 1 empty document: " + empty,
                          AllOf(StartsWith("changed: U+FFFD replaces 1 "), EndsWith(latin))));
  EXPECT_THAT(test::error_of([&] { read(); }),
              AllOf(StartsWith(latin), HasSubstr("data.encoding_errors=replace")));
}

TEST_F(RunningTextTest, TextBehindTheFirst16MiBIsLeftOutAndNamed) {
  put("a.txt", "One.");
  put("b.txt", std::string((size_t{16} << 20) - 4, 'x') + "\n");
  const std::string third = put("c.txt", "Three.");

  const RunningText cut = read();
  put("b.txt", std::string((size_t{16} << 20) - 5, 'x'));
  const RunningText whole = read();

  EXPECT_EQ(cut.sentences.size(), 2u);
  EXPECT_THAT(cut.notes, ElementsAre("left out: " + third +
                                     " and all text behind it, because the first 16 MiB of "
                                     "tasks.haystack are enough"));
  EXPECT_EQ(whole.sentences.size(), 3u);
  EXPECT_THAT(whole.notes, ElementsAre());
}

TEST_F(RunningTextTest, ErrorsNameTheSetting) {
  EXPECT_THAT(test::error_of([&] { read(); }),
              StartsWith("tasks.haystack: no *.txt, *.rst, *.md or *.jsonl"));
  EXPECT_THAT(test::error_of([&] {
                read_running_text({"none.txt"}, "tasks.haystack", EncodingErrors::strict);
              }),
              StartsWith("tasks.haystack: none.txt does not exist"));
}

}  // namespace
}  // namespace switchyard
