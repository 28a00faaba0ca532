#include "parallel/exchange_lists.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <utility>
#include <vector>

namespace switchyard {
namespace {

constexpr int64_t kExperts = 32, kRanks = 4, kTopK = 8, kTokens = 20000;

// What a rank gets of tokens whose router prefers the first rank's experts by `preference`: the
// experts of a token are those with the greatest scores.
struct Drawn {
  double load = 0.0;  // of the first rank, in loads of the mean rank
  int64_t rows = 0;   // tokens that want an expert there
};

Drawn draw(double preference) {
  std::mt19937_64 random(7);
  std::extreme_value_distribution<double> gumbel;
  Drawn drawn;
  for (int64_t t = 0; t < kTokens; ++t) {
    std::vector<std::pair<double, int64_t>> scores;
    for (int64_t e = 0; e < kExperts; ++e) {
      scores.emplace_back(gumbel(random) + (e < kExperts / kRanks ? preference : 0.0), e);
    }
    std::ranges::partial_sort(scores, scores.begin() + kTopK, std::greater());
    const auto there = std::count_if(scores.begin(), scores.begin() + kTopK,
                                     [](const auto& s) { return s.second < kExperts / kRanks; });
    drawn.load += static_cast<double>(there);
    drawn.rows += there > 0 ? 1 : 0;
  }
  drawn.load *= static_cast<double>(kRanks) / static_cast<double>(kTopK * kTokens);
  return drawn;
}

TEST(BalancedRoutingTest, ABusyRankGetsTheRowsOfTheTokensThatWantIt) {
  for (const double preference : {0.0, 0.5, 1.0, 2.0, -0.5}) {
    const Drawn drawn = draw(preference);
    const BalancedRouting routing{
        .num_experts = kExperts,
        .ranks = kRanks,
        .top_k = kTopK,
        .deduplicate = true,
        .rows_per_assignment = rows_per_assignment(kExperts, kTopK, kRanks),
        .load = drawn.load};
    const std::vector<int64_t> counts = routing.counts(kTokens);

    EXPECT_LE(counts[0], kTokens);
    EXPECT_NEAR(static_cast<double>(counts[0]), static_cast<double>(drawn.rows), 0.03 * kTokens)
        << "load " << drawn.load;
    // The other ranks get the rest of the assignments, and each its own tokens' rows.
    EXPECT_EQ(counts[1 + kExperts / kRanks], counts[2 * (1 + kExperts / kRanks)]);
  }
}

TEST(BalancedRoutingTest, WithoutDeduplicationEveryAssignmentIsARow) {
  for (const double load : {1.0, 1.5, 1.53, 0.4, 3.9}) {
    const BalancedRouting routing{.num_experts = kExperts,
                                  .ranks = kRanks,
                                  .top_k = kTopK,
                                  .deduplicate = false,
                                  .rank = 2,
                                  .load = load};
    const std::vector<int64_t> counts = routing.counts(515);

    int64_t rows = 0, assignments = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      (i % (1 + kExperts / kRanks) == 0 ? rows : assignments) += counts[i];
    }
    EXPECT_EQ(rows, 515 * kTopK) << "load " << load;
    EXPECT_EQ(assignments, 515 * kTopK) << "load " << load;
    EXPECT_NEAR(static_cast<double>(counts[2 * (1 + kExperts / kRanks)]), 1030.0 * load, 1.0);
  }
}

}  // namespace
}  // namespace switchyard
