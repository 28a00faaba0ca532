#include "trainer/data/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

std::vector<int64_t> permutation(RandomKey key, int64_t n) {
  std::vector<int64_t> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(permute_index(key, n, i));
  return values;
}

TEST(SamplerTest, ThePermutationIsABijectionForEverySize) {
  std::vector<int64_t> sizes(130);
  std::iota(sizes.begin(), sizes.end(), 1);
  sizes.insert(sizes.end(), {255, 256, 257, 1023, 1024, 1025, 4096, 4097, 10007, 65536, 65537});

  for (const int64_t n : sizes) {
    const auto values = permutation({n % 3 == 0 ? 1u : 7u, 5}, n);
    const std::set<int64_t> distinct(values.begin(), values.end());

    EXPECT_EQ(static_cast<int64_t>(distinct.size()), n);
    EXPECT_EQ(*distinct.begin(), 0);
    EXPECT_EQ(*distinct.rbegin(), n - 1);
  }
}

TEST(SamplerTest, ThePermutationStaysInRangeForHugeSizes) {
  const int64_t n = (int64_t{1} << 50) + 3;
  std::set<int64_t> seen;

  for (int64_t i = 0; i < 1000; ++i) seen.insert(permute_index({1, 2}, n, n - 1 - i));

  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_GE(*seen.begin(), 0);
  EXPECT_LT(*seen.rbegin(), n);
}

TEST(SamplerTest, OrdersOfDifferentSeedsAreUnrelated) {
  constexpr int64_t kN = 10007;
  const auto a = permutation({1, 5}, kN), b = permutation({2, 5}, kN);

  double correlation_identity = 0.0, correlation_seeds = 0.0;
  const double mean = (kN - 1) / 2.0, variance = (static_cast<double>(kN) * kN - 1) / 12.0;
  for (int64_t i = 0; i < kN; ++i) {
    const auto at = static_cast<size_t>(i);
    const double x = static_cast<double>(a[at]) - mean, y = static_cast<double>(b[at]) - mean;
    correlation_identity += x * (static_cast<double>(i) - mean) / variance / kN;
    correlation_seeds += x * y / variance / kN;
  }

  // The bound is five standard deviations, each 1 / sqrt(n).
  EXPECT_LT(std::abs(correlation_identity), 5 / std::sqrt(kN));
  EXPECT_LT(std::abs(correlation_seeds), 5 / std::sqrt(kN));
}

TEST(SamplerTest, EveryEpochVisitsEverySequenceOnceInAnotherOrder) {
  constexpr int64_t kN = 257;
  const Sampler sampler(/*dataset_fingerprint=*/3, /*seed=*/4, kN);

  std::vector<std::vector<int64_t>> epochs(3);
  for (int64_t i = 0; i < 3 * kN; ++i) {
    epochs[static_cast<size_t>(i / kN)].push_back(sampler.sequence_at(i));
  }

  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  for (const auto& epoch : epochs) {
    EXPECT_EQ(std::set<int64_t>(epoch.begin(), epoch.end()).size(), static_cast<size_t>(kN));
  }
}

TEST(SamplerTest, TheOrderDependsOnDatasetAndSeedAlone) {
  const auto order = [](uint64_t fingerprint, uint64_t seed) {
    const Sampler sampler(fingerprint, seed, 100);
    std::vector<int64_t> sequences;
    for (int64_t i = 0; i < 100; ++i) sequences.push_back(sampler.sequence_at(i));
    return sequences;
  };

  EXPECT_EQ(order(1, 2), order(1, 2));
  EXPECT_NE(order(1, 2), order(1, 3));
  EXPECT_NE(order(1, 2), order(2, 2));
}

// Runs that go on with a newer program must find the same order.
TEST(SamplerTest, TheOrderIsThis) {
  const Sampler sampler(0x0123456789abcdef, 1234, 10);
  std::vector<int64_t> order;
  for (int64_t n = 0; n < 20; ++n) order.push_back(sampler.sequence_at(n));

  EXPECT_EQ(order,
            (std::vector<int64_t>{2, 3, 0, 5, 6, 4, 7, 8, 9, 1, 1, 2, 3, 4, 0, 9, 5, 8, 6, 7}));
}

TEST(SamplerTest, AnEmptyEpochIsRefused) { EXPECT_THROW(Sampler(1, 2, 0), Error); }

}  // namespace
}  // namespace switchyard
