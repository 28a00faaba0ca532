#include "trainer/inference/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// Logits of these probabilities.
std::vector<float> logits_of(const std::vector<double>& probs) {
  std::vector<float> logits;
  for (const double p : probs) logits.push_back(static_cast<float>(std::log(p)) + 3.0f);
  return logits;
}

// How often each token is drawn, by uniform numbers that lie evenly in [0, 1).
std::vector<double> shares(const std::vector<float>& logits, const SamplingOptions& options) {
  constexpr int kDraws = 1000;
  std::vector<double> shares(logits.size());
  for (int i = 0; i < kDraws; ++i) {
    const int32_t token = sample_token(logits, options, (i + 0.5) / kDraws);
    shares.at(static_cast<size_t>(token)) += 1.0 / kDraws;
  }
  return shares;
}

void expect_shares(const std::vector<double>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 0.0015) << "token " << i;  // a draw and a half
  }
}

const std::vector<double> kProbs = {0.1, 0.4, 0.2, 0.3};

TEST(SamplingTest, TemperatureOneDrawsByTheSoftmax) {
  expect_shares(shares(logits_of(kProbs), {.temperature = 1.0, .top_p = 1.0}), kProbs);
}

TEST(SamplingTest, TemperatureDividesTheLogits) {
  // The square roots of the probabilities, and their squares, which add up to 0.3.
  const double roots = std::sqrt(0.1) + std::sqrt(0.4) + std::sqrt(0.2) + std::sqrt(0.3);
  expect_shares(shares(logits_of(kProbs), {.temperature = 2.0, .top_p = 1.0}),
                {std::sqrt(0.1) / roots, std::sqrt(0.4) / roots, std::sqrt(0.2) / roots,
                 std::sqrt(0.3) / roots});
  expect_shares(shares(logits_of(kProbs), {.temperature = 0.5, .top_p = 1.0}),
                {0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3});
}

TEST(SamplingTest, TemperatureZeroTakesTheLikeliestAndOfEqualOnesTheFirst) {
  const SamplingOptions greedy{.temperature = 0.0, .top_p = 1.0};

  for (const double uniform : {0.0, 0.5, 0.999}) {
    EXPECT_EQ(sample_token(logits_of(kProbs), greedy, uniform), 1);
    EXPECT_EQ(sample_token(std::vector<float>{1.0f, 2.0f, 2.0f, 0.0f}, greedy, uniform), 1);
  }
}

TEST(SamplingTest, TopPKeepsTheFewestTokensThatReachIt) {
  // 0.4 alone is too little for 0.65, with 0.3 it is enough.
  expect_shares(shares(logits_of(kProbs), {.temperature = 1.0, .top_p = 0.65}),
                {0.0, 0.4 / 0.7, 0.0, 0.3 / 0.7});
  expect_shares(shares(logits_of(kProbs), {.temperature = 1.0, .top_p = 0.35}),
                {0.0, 1.0, 0.0, 0.0});
}

TEST(SamplingTest, TopPOfNothingStillKeepsTheLikeliest) {
  expect_shares(shares(logits_of(kProbs), {.temperature = 1.0, .top_p = 0.0}),
                {0.0, 1.0, 0.0, 0.0});
}

TEST(SamplingTest, HugeLogitsAreNoOverflow) {
  expect_shares(shares({1e30f, -1e30f, 1e30f}, {.temperature = 0.7, .top_p = 1.0}),
                {0.5, 0.0, 0.5});
}

TEST(SamplingTest, NoLogitsAreAnError) { EXPECT_THROW(sample_token({}, {}, 0.5), Error); }

}  // namespace
}  // namespace switchyard
