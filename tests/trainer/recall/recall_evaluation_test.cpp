#include "trainer/recall/recall_evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace switchyard {
namespace {

using V = RecallVocabulary;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kSeqLen = 128;

const AnswerScore& score_of(const AnswerScores& scores, RecallTask task) {
  return scores[static_cast<size_t>(task)];
}

// The first row holds two samples of half its length, the second holds none.
class AddBatchTest : public ::testing::Test {
 protected:
  AddBatchTest() {
    batch_.num_sequences = 2;
    batch_.seq_len = kSeqLen;
    batch_.tokens = Tensor({2, kSeqLen}, DType::i32);
    batch_.targets = Tensor({2, kSeqLen}, DType::i32);
    std::fill_n(batch_.targets.data<int32_t>(), 2 * kSeqLen, -1);
    RecallSection options;
    options.tasks = {RecallTask::multi_value, RecallTask::variable_tracking};
    for (int64_t i = 0; i < 2; ++i)
      write(make_recall_sample(options, RecallPart::held_out, i, 64), 64 * i);
    predict_targets();
  }

  void write(const RecallSample& sample, int64_t begin) {
    std::ranges::copy(sample.tokens, batch_.tokens.data<int32_t>() + begin);
    for (const RecallAnswer& answer : sample.answers) {
      batch_.targets.data<int32_t>()[begin + answer.position - 1] = answer.token;
    }
  }
  void predict_targets() {
    for (int64_t t = 0; t < 2 * kSeqLen; ++t) {
      const int32_t target = batch_.targets.data<int32_t>()[t];
      logits_.data<float>()[t * V::kSize + std::max(target, 0)] = 1.0f;
    }
  }
  // The positions that predict the answers of the sample that begins at `begin`.
  std::vector<int64_t> answers(int64_t begin) const {
    std::vector<int64_t> positions;
    for (int64_t t = begin; t < begin + 64; ++t) {
      if (batch_.targets.data<int32_t>()[t] >= 0) positions.push_back(t);
    }
    return positions;
  }
  void spoil(int64_t position) { logits_.data<float>()[position * V::kSize] = 2.0f; }

  MicroBatch batch_;
  Tensor logits_{{2 * kSeqLen, V::kSize}, DType::f32};
  AnswerScores scores_{AnswerScores(V::kNumTasks)};
};

TEST_F(AddBatchTest, CountsSamplesAndAnswersByTask) {
  add_batch(scores_, batch_, logits_);

  const AnswerScore& values = score_of(scores_, RecallTask::multi_value);
  EXPECT_EQ(values.samples, 1);
  EXPECT_EQ(values.exact, 1);
  EXPECT_EQ(values.answers, 4);
  EXPECT_EQ(values.right, 4);
  const AnswerScore& variables = score_of(scores_, RecallTask::variable_tracking);
  EXPECT_EQ(variables.exact, 1);
  EXPECT_EQ(variables.answers, 5);
  for (const RecallTask task :
       {RecallTask::single, RecallTask::multi_key, RecallTask::multi_query}) {
    EXPECT_EQ(score_of(scores_, task).samples, 0);
  }
}

TEST_F(AddBatchTest, OneWrongAnswerMakesItsSampleWrongAndNoOther) {
  spoil(answers(64).back());

  add_batch(scores_, batch_, logits_);

  EXPECT_EQ(score_of(scores_, RecallTask::multi_value).exact, 1);
  EXPECT_EQ(score_of(scores_, RecallTask::variable_tracking).exact, 0);
  EXPECT_EQ(score_of(scores_, RecallTask::variable_tracking).right, 4);
}

TEST_F(AddBatchTest, WhatIsNoAnswerMayBeAnything) {
  spoil(answers(0).front() - 1);
  spoil(63);

  add_batch(scores_, batch_, logits_);

  EXPECT_EQ(score_of(scores_, RecallTask::multi_value).right, 4);
}

TEST_F(AddBatchTest, IdsThatPadTheVocabularyAreNoAnswers) {
  constexpr int64_t kPadded = V::kSize + 7;
  Tensor padded({2 * kSeqLen, kPadded}, DType::f32);
  std::fill_n(padded.data<float>(), 2 * kSeqLen * kPadded, 9.0f);
  for (int64_t t = 0; t < 2 * kSeqLen; ++t) {
    std::copy_n(logits_.data<float>() + t * V::kSize, V::kSize, padded.data<float>() + t * kPadded);
  }

  add_batch(scores_, batch_, padded);

  EXPECT_EQ(score_of(scores_, RecallTask::multi_value).right, 4);
  EXPECT_EQ(score_of(scores_, RecallTask::variable_tracking).right, 5);
}

TEST_F(AddBatchTest, TheTableHasTheTasksThatWereAsked) {
  spoil(answers(64).front());
  add_batch(scores_, batch_, logits_);

  RunConfig config;
  config.data.tokenizer.type = TokenizerType::recall;
  const std::string table = describe(scores_, *recall_answers(config));

  EXPECT_THAT(table, HasSubstr("multi_value                  1   100.00%   100.00%"));
  EXPECT_THAT(table, HasSubstr("variable_tracking            1     0.00%    80.00%"));
  EXPECT_THAT(table, Not(HasSubstr("multi_query")));
}

TEST(RecallAnswersTest, BelongToTheTokenizerOfTheTasks) {
  RunConfig config;
  EXPECT_EQ(recall_answers(config), nullptr);
  config.data.tokenizer.type = TokenizerType::recall;

  const AnswerKey& answers = *recall_answers(config);

  EXPECT_EQ(answers.task_of(V::kFirstTask + 2), 2);
  EXPECT_EQ(answers.task_name(2), "multi_value");
  EXPECT_FALSE(answers.task_of(V::kEndOfDocument).has_value());
  const std::vector<int32_t> targets = {V::kFirstValue, V::kFirstValue + 1};
  EXPECT_EQ(answers.vocab_size(), V::kSize);
  EXPECT_TRUE(answers.is_right(2, targets, 0, V::kFirstValue + 1));
  EXPECT_FALSE(answers.is_right(0, targets, 0, V::kFirstValue + 1));
}

}  // namespace
}  // namespace switchyard
