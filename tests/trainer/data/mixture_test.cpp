#include "trainer/data/mixture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;

// Fails where a source has given a whole sample more or less than its share.
void expect_shares(const std::vector<double>& weights, int64_t samples) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  Mixture mixture(weights);
  std::vector<int64_t> given(weights.size(), 0);
  for (int64_t n = 0; n < samples; ++n) {
    const auto [source, index] = mixture.at(n);
    ASSERT_EQ(index, given[source]++) << "sample " << n;
    for (size_t i = 0; i < weights.size(); ++i) {
      const double share = static_cast<double>(n + 1) * weights[i] / sum;
      ASSERT_LT(std::abs(static_cast<double>(given[i]) - share), 1.0)
          << "source " << i << " after sample " << n;
    }
  }
}

TEST(MixtureTest, SharesHoldToWithinOneSampleAtEveryPrefix) {
  expect_shares({0.7, 0.2, 0.1}, 10000);
  expect_shares({1.0}, 100);
  expect_shares({1e-6, 1e6}, 10000);
  expect_shares({0.334, 0.333, 0.332, 0.001}, 10000);
  expect_shares(std::vector<double>(31, 1.0), 10000);
  std::minstd_rand engine(3);
  for (int sources = 2; sources <= 33; ++sources) {
    std::vector<double> weights;
    for (int i = 0; i < sources; ++i) {
      // From equal to very different ones, in whole millionths.
      weights.push_back(static_cast<double>(1 + engine() % (i % 3 == 0 ? 10u : 1000000u)) * 1e-6);
    }
    expect_shares(weights, 3000);
  }
}

TEST(MixtureTest, TheOrderOfSevenTwoAndOneIsThis) {
  Mixture mixture(std::vector<double>{0.7, 0.2, 0.1});
  std::vector<size_t> sources;

  for (int64_t n = 0; n < 20; ++n) sources.push_back(mixture.at(n).source);

  EXPECT_THAT(mixture.shares(), ElementsAre(7, 2, 1));
  EXPECT_THAT(sources, ElementsAre(0, 0, 0, 1, 0, 0, 1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 1, 0, 0, 2));
}

TEST(MixtureTest, AnyNumberCanBeAskedForInAnyOrder) {
  const std::vector<double> weights = {0.123456, 3.0, 0.5};
  Mixture ascending(weights), jumping(weights);
  std::vector<Mixture::Sample> samples;
  for (int64_t n = 0; n < 5000; ++n) samples.push_back(ascending.at(n));
  std::minstd_rand engine(3);

  for (int i = 0; i < 100; ++i) {
    const auto n = static_cast<int64_t>(engine() % samples.size());
    for (int again = 0; again < 2; ++again) {
      EXPECT_EQ(jumping.at(n).source, samples[static_cast<size_t>(n)].source) << n;
      EXPECT_EQ(jumping.at(n).index, samples[static_cast<size_t>(n)].index) << n;
    }
  }
}

TEST(MixtureTest, WholePeriodsAreSkipped) {
  Mixture mixture(std::vector<double>{0.7, 0.2, 0.1});
  const int64_t far = 1'000'000'000'000'000'000;

  EXPECT_EQ(mixture.at(far + 9).source, 2u);
  EXPECT_EQ(mixture.at(far + 9).index, far / 10);
  EXPECT_EQ(Mixture(std::vector<double>{2.5}).at(far).index, far);
}

TEST(MixtureTest, NoSampleOfASourceComesBeforeItsEarliestNumber) {
  const std::vector<double> weights = {0.123456, 3.0, 0.5};
  Mixture mixture(weights);

  for (int64_t n = 0; n < 5000; ++n) {
    const auto [source, index] = mixture.at(n);
    EXPECT_LE(mixture.earliest(source, index), n);
    EXPECT_GE(mixture.earliest(source, index + 1) + 2, n) << "and it is not much earlier";
  }
  EXPECT_EQ(Mixture(std::vector<double>{2.5}).earliest(0, 12345), 12345);
}

TEST(MixtureTest, WrongWeightsAreRefused) {
  for (const double weight : {0.0, -1.0, 1e-7, 1e7, std::numeric_limits<double>::quiet_NaN(),
                              std::numeric_limits<double>::infinity()}) {
    EXPECT_THROW(Mixture(std::vector<double>{1.0, weight}), Error) << weight;
  }
  EXPECT_THROW(Mixture(std::vector<double>{}), Error);
}

}  // namespace
}  // namespace switchyard
