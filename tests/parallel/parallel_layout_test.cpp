#include "parallel/parallel_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"

namespace switchyard {
namespace {

using Group = std::vector<int> (ParallelLayout::*)(int) const;
using Coordinate = int (ParallelLayout::*)(int) const;

// Every rank is in its own group at its coordinate, and the groups partition the world.
void expect_partition(const ParallelLayout& layout, Group group, Coordinate coordinate, int size) {
  std::map<std::vector<int>, std::set<int>> members;
  for (int rank = 0; rank < layout.world_size(); ++rank) {
    const std::vector<int> ranks = (layout.*group)(rank);
    ASSERT_EQ(static_cast<int>(ranks.size()), size);
    ASSERT_EQ(ranks[static_cast<size_t>((layout.*coordinate)(rank))], rank);
    ASSERT_TRUE(std::is_sorted(ranks.begin(), ranks.end()));
    members[ranks].insert(rank);
  }
  int covered = 0;
  for (const auto& [ranks, found] : members) {
    EXPECT_EQ(std::set<int>(ranks.begin(), ranks.end()), found);
    covered += static_cast<int>(found.size());
  }
  EXPECT_EQ(covered, layout.world_size());
}

// tp and ep are independent of each other, so trying each value of either once covers every case.
// 960 has divisors that are not powers of two.
TEST(ParallelLayoutTest, EveryDivisorPartsTheWorldIntoGroups) {
  for (const int world : {1, 2, 960, 1024}) {
    std::vector<int> divisors;
    for (int d = 1; d <= world; ++d) {
      if (world % d == 0) divisors.push_back(d);
    }
    for (size_t i = 0; i < divisors.size(); ++i) {
      const ParallelLayout layout(world, divisors[i], divisors[divisors.size() - 1 - i]);
      SCOPED_TRACE(to_string(layout));
      expect_partition(layout, &ParallelLayout::tp_group, &ParallelLayout::tp_rank, layout.tp());
      expect_partition(layout, &ParallelLayout::dp_group, &ParallelLayout::dp_rank, layout.dp());
      expect_partition(layout, &ParallelLayout::ep_group, &ParallelLayout::ep_rank, layout.ep());
      expect_partition(layout, &ParallelLayout::edp_group, &ParallelLayout::edp_rank, layout.edp());
      EXPECT_EQ(layout.tp() * layout.dp(), world);
      EXPECT_EQ(layout.ep() * layout.edp(), world);
    }
  }
}

// rank = dp_rank * tp + tp_rank = edp_rank * ep + ep_rank
TEST(ParallelLayoutTest, CoordinatesGiveTheRankBackInBothMeshes) {
  for (int tp = 1; tp <= 1024; tp *= 2) {
    for (int ep = 1; ep <= 1024; ep *= 2) {
      const ParallelLayout layout(1024, tp, ep);
      for (int rank = 0; rank < 1024; ++rank) {
        ASSERT_EQ(layout.dp_rank(rank) * tp + layout.tp_rank(rank), rank);
        ASSERT_EQ(layout.edp_rank(rank) * ep + layout.ep_rank(rank), rank);
        ASSERT_LT(layout.tp_rank(rank), tp);
        ASSERT_LT(layout.ep_rank(rank), ep);
      }
    }
  }
}

TEST(ParallelLayoutTest, ExpertGroupsMaySpanTensorGroups) {
  const ParallelLayout layout(8, /*tp=*/2, /*ep=*/4);

  EXPECT_EQ(layout.tp_group(5), (std::vector<int>{4, 5}));
  EXPECT_EQ(layout.dp_group(5), (std::vector<int>{1, 3, 5, 7}));
  EXPECT_EQ(layout.ep_group(5), (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(layout.edp_group(5), (std::vector<int>{1, 5}));
}

TEST(ParallelLayoutTest, HostsCutExpertGroupsIntoEqualParts) {
  const auto per_host = [](int ep, const std::vector<int>& hosts) {
    return ep_ranks_per_host(ParallelLayout(static_cast<int>(hosts.size()), 1, ep), hosts);
  };
  EXPECT_EQ(per_host(4, {0, 0, 1, 1}), 2);
  EXPECT_EQ(per_host(4, {5, 5, 5, 5}), 4);
  EXPECT_EQ(per_host(2, {0, 0, 0, 0, 1, 1, 1, 1}), 2);
  EXPECT_EQ(per_host(8, {0, 0, 2, 2, 4, 4, 6, 6}), 2);
  EXPECT_EQ(per_host(2, {0, 1, 0, 1}), 1);
  EXPECT_EQ(per_host(1, {0, 0, 1, 1}), 1);
}

TEST(ParallelLayoutTest, RefusesHostsThatCutExpertGroupsUnequally) {
  const std::vector<std::vector<int>> refused = {
      {0, 0, 0, 1},              // another number of ranks
      {0, 1, 0, 1},              // a host twice
      {0, 0, 1, 2},              // a part of a run
      {0, 0, 0, 0, 1, 1, 2, 2},  // groups on one host, and on two
  };
  for (const std::vector<int>& hosts : refused) {
    const ParallelLayout layout(static_cast<int>(hosts.size()), 1, 4);
    EXPECT_THROW(ep_ranks_per_host(layout, hosts), Error) << testing::PrintToString(hosts);
  }
  EXPECT_THAT(test::error_of([] {
                const std::vector<int> hosts = {0, 0, 0, 0, 1, 1, 2, 2};
                ep_ranks_per_host(ParallelLayout(8, 1, 4), hosts);
              }),
              testing::HasSubstr("the 4 ranks of the group of rank 4 lie on hosts 1 1 2 2"));
}

TEST(ParallelLayoutTest, RefusesWhatDoesNotDivide) {
  EXPECT_THROW(ParallelLayout(8, 3, 1), Error);
  EXPECT_THROW(ParallelLayout(8, 1, 6), Error);
  EXPECT_THROW(ParallelLayout(0, 1, 1), Error);
  EXPECT_THROW(ParallelLayout(8, 0, 1), Error);
  EXPECT_THROW(ParallelLayout(8, 1, -1), Error);
  EXPECT_THROW(ParallelLayout(8, 16, 1), Error);
}

}  // namespace
}  // namespace switchyard
