#include "trainer/inference/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// A token is drawn where `uniform` lies in one interval as long as the token's probability p. Of
// kGrid evenly spaced points such an interval holds kGrid * p to within one, so these counts never
// exceed their bound.
constexpr int kGrid = 10000;

std::vector<int> counts_over_grid(const std::vector<float>& logits,
                                  const SamplingOptions& options) {
  std::vector<int> counts(logits.size());
  for (int i = 0; i < kGrid; ++i) {
    const int32_t token = sample_token(logits, options, (i + 0.5) / kGrid);
    ++counts.at(static_cast<size_t>(token));
  }
  return counts;
}

void expect_probabilities(const std::vector<float>& logits, const SamplingOptions& options,
                          const std::vector<double>& probabilities) {
  const std::vector<int> counts = counts_over_grid(logits, options);
  for (size_t token = 0; token < counts.size(); ++token) {
    const double expected = kGrid * probabilities[token];
    if (expected == 0.0) {
      EXPECT_EQ(counts[token], 0) << "token " << token;
    } else {
      EXPECT_LE(std::abs(counts[token] - expected), 1.0) << "token " << token;
    }
  }
}

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)) + 3.0f);
  return logits;
}

TEST(Sampling, TemperatureZeroTakesTheLikeliestToken) {
  expect_probabilities({0.1f, 0.3f, 0.2f}, {.temperature = 0.0}, {0.0, 1.0, 0.0});
}

TEST(Sampling, TemperatureZeroTakesTheLowestOfTies) {
  expect_probabilities({0.1f, 0.3f, 0.3f, 0.3f}, {.temperature = 0.0}, {0.0, 1.0, 0.0, 0.0});
}

TEST(Sampling, DrawsTheProbabilitiesOfTheSoftmax) {
  const std::vector<double> probabilities = {0.05, 0.5, 0.15, 0.3};

  expect_probabilities(logits_of(probabilities), {}, probabilities);
}

TEST(Sampling, TemperatureDividesTheLogits) {
  const std::vector<float> logits = {1.0f, -0.5f, 2.0f, 0.0f};
  for (const double temperature : {0.25, 0.5, 2.0, 8.0}) {
    std::vector<double> probabilities;
    double sum = 0.0;
    for (const float logit : logits) {
      probabilities.push_back(std::exp(logit / temperature));
      sum += probabilities.back();
    }
    for (double& p : probabilities) p /= sum;

    expect_probabilities(logits, {.temperature = temperature}, probabilities);
  }
}

TEST(Sampling, TopPKeepsTheFewestLikeliestTokensThatReachIt) {
  const std::vector<float> logits = logits_of({0.05, 0.5, 0.15, 0.3});

  expect_probabilities(logits, {.top_p = 0.01}, {0.0, 1.0, 0.0, 0.0});
  expect_probabilities(logits, {.top_p = 0.49}, {0.0, 1.0, 0.0, 0.0});
  expect_probabilities(logits, {.top_p = 0.51}, {0.0, 0.625, 0.0, 0.375});
  expect_probabilities(logits, {.top_p = 0.79}, {0.0, 0.625, 0.0, 0.375});
  expect_probabilities(logits, {.top_p = 0.81}, {0.0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95});
  expect_probabilities(logits, {.top_p = 0.96}, {0.05, 0.5, 0.15, 0.3});
}

TEST(Sampling, TopPCountsProbabilitiesAfterTheTemperature) {
  // Temperature 0.5 squares the probabilities: 0.25, 0.09, 0.0225 and 0.0025 of 0.365.
  const std::vector<float> logits = logits_of({0.05, 0.5, 0.15, 0.3});

  expect_probabilities(logits, {.temperature = 0.5, .top_p = 0.68}, {0.0, 1.0, 0.0, 0.0});
  expect_probabilities(logits, {.temperature = 0.5, .top_p = 0.69},
                       {0.0, 0.25 / 0.34, 0.0, 0.09 / 0.34});
}

TEST(Sampling, OfTiesAtTheEdgeTopPKeepsTheLowerToken) {
  expect_probabilities(logits_of({0.2, 0.4, 0.2, 0.2}), {.top_p = 0.5},
                       {1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0});
}

TEST(Sampling, EndsOfTheUnitIntervalStayAmongTheKeptTokens) {
  const std::vector<float> logits = logits_of({0.05, 0.5, 0.15, 0.3});
  const double first = std::numeric_limits<double>::min(), last = std::nextafter(1.0, 0.0);

  EXPECT_EQ(sample_token(logits, {}, first), 1);
  EXPECT_EQ(sample_token(logits, {}, last), 0);
  EXPECT_EQ(sample_token(logits, {.top_p = 0.6}, last), 3);
}

TEST(Sampling, GreatLogitsAndImpossibleTokensAreNoTrouble) {
  const float none = -std::numeric_limits<float>::infinity();

  expect_probabilities({90000.0f, none, 90000.0f, -90000.0f}, {}, {0.5, 0.0, 0.5, 0.0});
}

TEST(Sampling, RandomNumbersOfASeedDrawTheProbabilities) {
  constexpr int kDraws = 100000;
  const std::vector<double> probabilities = {0.05, 0.5, 0.15, 0.3};
  const std::vector<float> logits = logits_of(probabilities);
  std::vector<int> counts(4);
  for (int i = 0; i < kDraws; ++i) {
    const double uniform =
        random_uniform({/*seed=*/3, stream_id("sample")}, static_cast<uint64_t>(i));
    ++counts.at(static_cast<size_t>(sample_token(logits, {}, uniform)));
  }

  // A count is binomial. One seed in two million exceeds five standard deviations.
  for (size_t token = 0; token < 4; ++token) {
    const double p = probabilities[token], deviation = std::sqrt(kDraws * p * (1.0 - p));
    EXPECT_NEAR(counts[token], kDraws * p, 5.0 * deviation) << "token " << token;
  }
}

TEST(Sampling, RejectsNoLogits) {
  EXPECT_THAT([] { sample_token({}, {}, 0.5); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("no logits")));
}

}  // namespace
}  // namespace switchyard
