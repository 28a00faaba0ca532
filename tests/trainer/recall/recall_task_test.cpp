#include "trainer/recall/recall_task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "tests/support/error_of.h"

namespace switchyard {
namespace {

using test::error_of;
using V = RecallVocabulary;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Pair = std::pair<int32_t, int32_t>;
using Words = std::vector<int32_t>;

constexpr std::array kTasks = {RecallTask::single, RecallTask::multi_key, RecallTask::multi_value,
                               RecallTask::multi_query, RecallTask::variable_tracking};
constexpr std::array kParts = {RecallPart::train, RecallPart::held_out};

RecallSection only(RecallTask task) {
  RecallSection options;
  options.tasks = {task};
  options.practice_share = 0.0;
  return options;
}

RecallSample make(RecallTask task, RecallPart part, int64_t index, int64_t length) {
  return make_recall_sample(only(task), part, index, length);
}

struct Needle {
  size_t position;
  Pair pair;
};

// The contents of a sample, read from its tokens alone.
struct Reading {
  std::vector<Needle> needles;
  size_t haystack_end = 0;  // the position of the first question
  std::vector<std::pair<int32_t, Words>> questions;
};

Reading read(const RecallSample& sample) {
  const Words& tokens = sample.tokens;
  Reading reading;
  size_t t = 1;
  for (; t < tokens.size() && tokens[t] != V::kAsk; ++t) {
    if (tokens[t] != V::kSet) continue;
    reading.needles.push_back({t, {tokens.at(t + 1), tokens.at(t + 2)}});
    t += 2;
  }
  reading.haystack_end = t;
  while (t < tokens.size()) {
    EXPECT_EQ(tokens[t], V::kAsk);
    auto& [asked, answers] = reading.questions.emplace_back(tokens.at(t + 1), Words());
    for (t += 2; t < tokens.size() && tokens[t] != V::kAsk; ++t) answers.push_back(tokens[t]);
  }
  return reading;
}

// Every value to which the haystack sets `asked`, in order. For variable_tracking a value is itself
// a variable, so its values follow it.
Words look_up(const Reading& reading, RecallTask task, int32_t asked) {
  Words found;
  for (const Needle& needle : reading.needles) {
    if (needle.pair.first != asked) continue;
    found.push_back(needle.pair.second);
    if (task != RecallTask::variable_tracking) continue;
    const Words rest = look_up(reading, task, needle.pair.second);
    found.insert(found.end(), rest.begin(), rest.end());
  }
  return found;
}

class RecallTaskTest : public ::testing::TestWithParam<RecallTask> {
 protected:
  // Calls body(sample, part, length) for samples of small, odd and large lengths.
  template <class Body>
  void for_samples(const Body& body) const {
    for (const RecallPart part : kParts) {
      for (const int64_t length : {64, 127, 256, 2048}) {
        for (int64_t index = 0; index < 12; ++index) {
          body(make(GetParam(), part, index, length), part, length);
        }
      }
    }
  }
};

TEST_P(RecallTaskTest, IsAFunctionOfItsArgumentsAlone) {
  const auto one = make(GetParam(), RecallPart::train, 7, 256);
  const auto again = make(GetParam(), RecallPart::train, 7, 256);

  EXPECT_EQ(one.tokens, again.tokens);
  EXPECT_EQ(one.answers, again.answers);
}

TEST_P(RecallTaskTest, DiffersByIndexPartAndSeed) {
  RecallSection other_seed = only(GetParam());
  other_seed.seed = 2;
  const std::set<Words> samples = {
      make(GetParam(), RecallPart::train, 7, 256).tokens,
      make(GetParam(), RecallPart::train, 8, 256).tokens,
      make(GetParam(), RecallPart::held_out, 7, 256).tokens,
      make_recall_sample(other_seed, RecallPart::train, 7, 256).tokens,
  };

  EXPECT_EQ(samples.size(), 4u);
}

TEST_P(RecallTaskTest, FillsItsLengthButForTheEndOfTheDocument) {
  for_samples([](const RecallSample& sample, RecallPart, int64_t length) {
    EXPECT_EQ(std::ssize(sample.tokens), length - 1);
    EXPECT_EQ(recall_task_of(sample.tokens.front()), sample.task);
    EXPECT_EQ(std::ranges::count(sample.tokens, V::kEndOfDocument), 0);
    EXPECT_TRUE(std::ranges::all_of(sample.tokens, [](int32_t t) { return t < V::kSize; }));
  });
}

TEST_P(RecallTaskTest, TheHaystackImpliesEveryAnswer) {
  for_samples([](const RecallSample& sample, RecallPart, int64_t) {
    const Reading reading = read(sample);

    for (const auto& [asked, answers] : reading.questions) {
      EXPECT_EQ(answers, look_up(reading, sample.task, asked));
      EXPECT_FALSE(answers.empty());
    }
  });
}

TEST_P(RecallTaskTest, NothingIsAskedTwiceAndAnswersOfAQuestionDiffer) {
  for_samples([](const RecallSample& sample, RecallPart, int64_t) {
    std::set<int32_t> asked;
    for (const auto& [word, answers] : read(sample).questions) {
      EXPECT_TRUE(asked.insert(word).second);
      EXPECT_EQ(std::set<int32_t>(answers.begin(), answers.end()).size(), answers.size());
    }
  });
}

TEST_P(RecallTaskTest, NamesThePlacesOfItsAnswers) {
  for_samples([](const RecallSample& sample, RecallPart, int64_t) {
    Words told, read_off;
    for (const RecallAnswer& answer : sample.answers) {
      told.push_back(answer.token);
      read_off.push_back(sample.tokens.at(static_cast<size_t>(answer.position)));
    }
    EXPECT_EQ(told, read_off);
    Words expected;
    for (const auto& [asked, answers] : read(sample).questions) {
      expected.insert(expected.end(), answers.begin(), answers.end());
    }
    EXPECT_EQ(told, expected);
  });
}

TEST_P(RecallTaskTest, TrainingAndHeldOutSamplesShareNoNeedle) {
  std::set<Pair> of_part[2];
  for_samples([&](const RecallSample& sample, RecallPart part, int64_t) {
    for (const Needle& needle : read(sample).needles) {
      of_part[static_cast<size_t>(part)].insert(needle.pair);
    }
  });

  std::vector<Pair> shared;
  std::ranges::set_intersection(of_part[0], of_part[1], std::back_inserter(shared));
  EXPECT_TRUE(shared.empty());
  EXPECT_GE(of_part[1].size(), 12u);
}

TEST_P(RecallTaskTest, HeldOutSamplesHaveOneQuestion) {
  for_samples([](const RecallSample& sample, RecallPart part, int64_t) {
    if (part == RecallPart::train) return;
    const size_t questions = sample.task == RecallTask::multi_query ? 4 : 1;
    EXPECT_EQ(read(sample).questions.size(), questions);
  });
}

TEST_P(RecallTaskTest, TrainingSamplesHaveFromOneQuestionToTheirShare) {
  std::set<size_t> counts;
  for (int64_t index = 0; index < 400; ++index) {
    const Reading reading = read(make(GetParam(), RecallPart::train, index, 128));
    counts.insert(reading.questions.size());
    size_t tokens = 3 * reading.needles.size();
    for (const auto& [asked, answers] : reading.questions) tokens += 2 + answers.size();
    EXPECT_LE(tokens, 115u);  // 0.9 * 128
  }

  EXPECT_EQ(*counts.begin(), 1u);
  EXPECT_EQ(*counts.rbegin(), counts.size());
}

// A uniform distribution on [0, 1) has the mean 1/2 and the variance 1/12.
TEST_P(RecallTaskTest, NeedlesAreDistributedUniformly) {
  double sum = 0.0, squares = 0.0, count = 0.0;
  for (int64_t index = 0; index < 2000; ++index) {
    const Reading reading = read(make(GetParam(), RecallPart::held_out, index, 256));
    for (const Needle& needle : reading.needles) {
      const double depth =
          static_cast<double>(needle.position - 1) / static_cast<double>(reading.haystack_end - 3);
      sum += depth;
      squares += depth * depth;
      count += 1.0;
    }
  }

  const double mean = sum / count;
  EXPECT_NEAR(mean, 0.5, 0.03);
  EXPECT_NEAR(squares / count - mean * mean, 1.0 / 12.0, 0.01);
}

TEST_P(RecallTaskTest, SaysWhenASampleDoesNotFit) {
  int64_t least = 1;
  while (!check_recall(only(GetParam()), least).empty()) ++least;

  EXPECT_EQ(std::ssize(make(GetParam(), RecallPart::held_out, 0, least).tokens), least - 1);
  EXPECT_EQ(std::ssize(make(GetParam(), RecallPart::train, 0, least).tokens), least - 1);
  EXPECT_THAT(error_of([&] { make(GetParam(), RecallPart::held_out, 0, least - 1); }),
              AllOf(HasSubstr(std::string(to_string(GetParam()))), HasSubstr("does not fit")));
}

INSTANTIATE_TEST_SUITE_P(Tasks, RecallTaskTest, ::testing::ValuesIn(kTasks),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

TEST(RecallShapeTest, SingleHasOneNeedle) {
  EXPECT_EQ(read(make(RecallTask::single, RecallPart::held_out, 3, 2048)).needles.size(), 1u);
}

TEST(RecallShapeTest, MultiKeyIsFullOfNeedlesAsFarAsThereAreKeys) {
  const auto needles = [](int64_t length) {
    return read(make(RecallTask::multi_key, RecallPart::held_out, 3, length)).needles.size();
  };

  EXPECT_EQ(needles(256), 32u);  // 0.375 * 256 / 3
  EXPECT_EQ(needles(2048), 48u);
}

TEST(RecallShapeTest, MultiValueHasTheValuesOfOneKey) {
  RecallSection options = only(RecallTask::multi_value);
  for (const int64_t values : {1, 3, 8}) {
    options.values = values;
    const auto sample = make_recall_sample(options, RecallPart::held_out, 5, 512);

    EXPECT_EQ(std::ssize(read(sample).needles), values);
    EXPECT_EQ(std::ssize(sample.answers), values);
  }
}

TEST(RecallShapeTest, MultiQueryAsksForAsManyKeys) {
  RecallSection options = only(RecallTask::multi_query);
  options.queries = 9;
  const auto sample = make_recall_sample(options, RecallPart::held_out, 5, 512);

  EXPECT_EQ(read(sample).questions.size(), 9u);
  EXPECT_EQ(read(sample).needles.size(), 9u);
}

TEST(RecallShapeTest, AChainHasAVariableMoreThanHops) {
  RecallSection options = only(RecallTask::variable_tracking);
  for (const int64_t hops : {0, 1, 8}) {
    options.hops = hops;
    const auto sample = make_recall_sample(options, RecallPart::held_out, 5, 512);

    EXPECT_EQ(std::ssize(read(sample).needles), hops + 1);
    EXPECT_EQ(std::ssize(sample.answers), hops + 1);
    EXPECT_GE(read(sample).questions.front().first, V::kFirstValue);
  }
}

TEST(RecallShapeTest, SamplesTakeTurns) {
  RecallSection options;
  options.practice_share = 0.0;
  for (int64_t index = 0; index < 12; ++index) {
    EXPECT_EQ(make_recall_sample(options, RecallPart::train, index, 256).task,
              options.tasks[static_cast<size_t>(index % 5)]);
  }
}

class PracticeTest : public ::testing::Test {
 protected:
  static RecallSample make(int64_t index, int64_t length) {
    RecallSection options = only(RecallTask::single);
    options.practice_share = 1.0;
    return make_recall_sample(options, RecallPart::train, index, length);
  }
};

TEST_F(PracticeTest, IsForTrainingAloneAndForItsShareOfSamples) {
  RecallSection options;
  options.practice_share = 0.25;
  int practised = 0;
  for (int64_t index = 0; index < 1000; ++index) {
    const auto train = make_recall_sample(options, RecallPart::train, index, 64);
    practised += train.task == RecallTask::practice ? 1 : 0;
    EXPECT_NE(make_recall_sample(options, RecallPart::held_out, index, 64).task,
              RecallTask::practice);
  }

  EXPECT_NEAR(practised, 250, 50);
}

TEST_F(PracticeTest, EveryWordOfAWalkFollowsFromTheHaystackAndOfAnEchoFromTheWordsBefore) {
  int walks = 0, echoes = 0;
  for (const int64_t length : {16, 31, 256, 2048}) {
    for (int64_t index = 0; index < 50; ++index) {
      const RecallSample sample = make(index, length);
      const Reading reading = read(sample);

      EXPECT_EQ(std::ssize(sample.tokens), length - 1);
      EXPECT_FALSE(reading.questions.empty());
      for (const auto& [asked, answers] : reading.questions) {
        Words words = answers;
        words.insert(words.begin(), asked);
        for (size_t i = 1; i < words.size(); ++i) {
          if (reading.needles.empty()) {
            EXPECT_TRUE(i < 2 || words[i] == words[i - 2]);
          } else {
            EXPECT_EQ(look_up(reading, RecallTask::single, words[i - 1]), Words{words[i]});
          }
        }
      }
      ++(reading.needles.empty() ? echoes : walks);
    }
  }

  EXPECT_GT(walks, 50);
  EXPECT_GT(echoes, 50);
}

TEST_F(PracticeTest, HasManyAnswers) {
  for (const int64_t length : {64, 256, 2048}) {
    double answers = 0.0;
    for (int64_t index = 0; index < 100; ++index) {
      answers += static_cast<double>(make(index, length).answers.size());
    }
    EXPECT_GT(answers / 100.0, 0.3 * static_cast<double>(length));
  }
}

TEST_F(PracticeTest, SamplesTooShortForItHaveATask) {
  RecallSection options = only(RecallTask::single);
  options.practice_share = 1.0;

  EXPECT_EQ(make_recall_sample(options, RecallPart::train, 0, 11).task, RecallTask::single);
  EXPECT_EQ(make_recall_sample(options, RecallPart::train, 0, 13).task, RecallTask::practice);
}

// Each word needs as many held-out needles as the largest task can use: a value begins one chain; a
// key may stand anywhere in a chain (data.recall.hops of 8) or have 8 values.
TEST(RecallVocabularyTest, EveryWordHasHeldOutNeedles) {
  const auto held_out = [](int32_t first, int32_t begin, int32_t count) {
    int number = 0;
    for (int32_t second = begin; second < begin + count; ++second) {
      number += is_held_out_needle(first, second) ? 1 : 0;
    }
    return number;
  };

  for (int32_t word = V::kFirstKey; word < V::kSize; ++word) {
    const bool is_key = word < V::kFirstValue;
    EXPECT_GE(held_out(word, V::kFirstKey, V::kNumKeys), is_key ? 9 : 1) << recall_word(word);
    if (is_key) {
      EXPECT_GE(held_out(word, V::kFirstValue, V::kNumValues), 8) << recall_word(word);
    }
  }
}

TEST(RecallVocabularyTest, WordsAndTokensAreOneToOne) {
  std::set<std::string> words;
  for (int32_t token = 0; token < V::kSize; ++token) {
    EXPECT_EQ(recall_token(recall_word(token)), token);
    words.insert(recall_word(token));
  }

  EXPECT_EQ(words.size(), static_cast<size_t>(V::kSize));
  EXPECT_EQ(recall_word(V::kFirstKey + 17), "k17");
}

TEST(RecallVocabularyTest, KnowsNoOtherWords) {
  for (const char* word : {"", "k", "k64", "k-1", "k1x", "x1", "v64", "f23", "SET"}) {
    EXPECT_FALSE(recall_token(word).has_value()) << word;
  }
  EXPECT_THAT(error_of([] { recall_word(V::kSize); }), HasSubstr("outside the vocabulary"));
}

TEST(IsRightAnswerTest, OnlyValuesOfAKeyMayComeInAnyOrder) {
  const int32_t a = V::kFirstValue, b = a + 1, c = a + 2;
  const Words targets = {-1, a, b, -1, -1, c, -1};
  const auto right = [&](RecallTask task, int64_t position, int32_t token) {
    return is_right_answer(task, targets, position, token);
  };

  for (const RecallTask task : kTasks) {
    EXPECT_TRUE(right(task, 1, a));
    EXPECT_TRUE(right(task, 5, c));
    EXPECT_EQ(right(task, 1, b), task == RecallTask::multi_value);
    EXPECT_FALSE(right(task, 2, a)) << "given before";
    EXPECT_FALSE(right(task, 1, c)) << "of another question";
  }
}

TEST(RecallLengthsTest, AreHalvesDownToTheShortest) {
  RecallSection options;
  const auto lengths = [&](int64_t shortest, int64_t seq_len) {
    options.shortest = shortest;
    return recall_lengths(options, seq_len);
  };

  EXPECT_EQ(lengths(0, 2048), (std::vector<int64_t>{2048}));
  EXPECT_EQ(lengths(256, 2048), (std::vector<int64_t>{2048, 1024, 512, 256}));
  EXPECT_EQ(lengths(257, 2048), (std::vector<int64_t>{2048, 1024, 512}));
  EXPECT_EQ(lengths(100, 600), (std::vector<int64_t>{600, 300, 150}));
  EXPECT_EQ(lengths(10, 150), (std::vector<int64_t>{150, 75}));  // 75 is odd
}

TEST(CheckRecallTest, NamesTheOptionThatIsWrong) {
  RecallSection options;
  EXPECT_TRUE(check_recall(options, 256).empty());

  options.shortest = 512;
  ASSERT_EQ(check_recall(options, 256).size(), 1u);
  EXPECT_EQ(check_recall(options, 256).front().key, "data.recall.shortest");

  options.shortest = 16;
  for (const ConfigProblem& problem : check_recall(options, 256)) {
    EXPECT_EQ(problem.key, "data.recall.shortest");
    EXPECT_THAT(problem.text, HasSubstr("does not fit 16"));
  }
  EXPECT_EQ(check_recall(options, 256).size(), 3u);  // multi_value, multi_query, variable_tracking

  options = {};
  options.tasks.clear();
  EXPECT_EQ(check_recall(options, 256).front().key, "data.recall.tasks");
}

}  // namespace
}  // namespace switchyard
