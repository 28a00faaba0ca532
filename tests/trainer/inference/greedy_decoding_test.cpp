#include "trainer/inference/greedy_decoding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "tests/support/error_of.h"
#include "tests/support/model_fixture.h"
#include "trainer/inference/generate.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;

ModelConfig model_with_context() {
  ModelConfig config = test::tiny_model(Structure::bigmac);
  config.seq_len = 40;
  return config;
}

bool never(std::span<const int32_t>) { return false; }

class GreedyDecodingTest : public ::testing::Test {
 protected:
  GreedyDecodingTest() : model_(stream_, model_with_context(), dist_, {.seed = 5}) {
    for (int32_t i = 0; i < 23; ++i) request_.prompt.push_back((7 * i + 3) % 37);
    request_.max_tokens = 12;
    request_.vocab_size = 37;
  }

  GreedyDecoding decoding() { return {stream_, model_, dist_, request_}; }
  std::vector<int32_t> dense_answer() {
    const DecodeSetup dense{};
    return decoding().run(selectors_of(dense), never);
  }
  static DecodeSetup exact_topk(double budget) {
    DecodeSetup setup;
    setup.dense_layers = 0;
    setup.config.method = DecodeMethod::exact_topk;
    setup.config.budget = budget;
    return setup;
  }
  // The tokens that `generate` finds one by one.
  std::vector<int32_t> likeliest() {
    GenerationRequest request{.prompt = request_.prompt, .max_tokens = 12};
    request.sampling.temperature = 0.0;
    return generate(stream_, model_, dist_, request)[0];
  }

  Stream stream_;
  DistributedContext dist_;
  Transformer model_;
  GreedyRequest request_;
};

TEST_F(GreedyDecodingTest, EveryTokenIsTheLikeliest) { EXPECT_EQ(dense_answer(), likeliest()); }

TEST_F(GreedyDecodingTest, OnePrefillServesAnyNumberOfMethods) {
  const DecodeSetup dense{}, all = exact_topk(1000.0), one = exact_topk(1.0);
  const std::vector<int32_t> expected = likeliest();
  GreedyDecoding decoding = this->decoding();

  const std::vector<int32_t> first = decoding.run(selectors_of(one), never);

  EXPECT_NE(first, expected);  // the choice of keys matters to this model
  EXPECT_EQ(decoding.run(selectors_of(all), never), expected);
  EXPECT_EQ(decoding.run(selectors_of(one), never), first);
  EXPECT_EQ(decoding.run(selectors_of(dense), never), expected);
}

TEST_F(GreedyDecodingTest, AnAnswerEndsBeforeTheEndTokenOrWhenItIsComplete) {
  const std::vector<int32_t> whole = dense_answer();
  const DecodeSetup dense{};

  const std::vector<int32_t> three = decoding().run(
      selectors_of(dense), [](std::span<const int32_t> tokens) { return tokens.size() == 3; });

  EXPECT_EQ(three, std::vector<int32_t>(whole.begin(), whole.begin() + 3));
  request_.end_token = whole[4];
  const auto end = std::ranges::find(whole, whole[4]);
  EXPECT_EQ(dense_answer(), std::vector<int32_t>(whole.begin(), end));
}

TEST_F(GreedyDecodingTest, IdsThatPadTheVocabularyAreNoTokens) {
  const std::vector<int32_t> whole = dense_answer();
  request_.vocab_size = *std::ranges::max_element(whole);

  const std::vector<int32_t> known = dense_answer();

  EXPECT_LT(*std::ranges::max_element(known), request_.vocab_size);
}

TEST_F(GreedyDecodingTest, AModelThatHasDivergedIsAnError) {
  const auto norm = std::ranges::find(model_.parameters().parameters(), "norm.weight",
                                      [](const Parameter& p) { return p.spec.name; });
  norm->value.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();

  EXPECT_THAT(test::error_of([&] { dense_answer(); }), HasSubstr("the model has diverged"));
}

TEST_F(GreedyDecodingTest, WhatDoesNotFitIsAnError) {
  request_.prompt.resize(1);
  EXPECT_THAT(test::error_of([&] { dense_answer(); }), HasSubstr("too short: give at least 2"));
}

}  // namespace
}  // namespace switchyard
