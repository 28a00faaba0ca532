#include "parallel/cores.h"

#include <gtest/gtest.h>

#include <vector>

namespace switchyard {
namespace {

cpu_set_t cores(size_t begin, size_t end) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (size_t core = begin; core < end; ++core) CPU_SET(core, &set);
  return set;
}

std::vector<int> shares(const std::vector<cpu_set_t>& of_ranks) {
  std::vector<int> all;
  for (size_t rank = 0; rank < of_ranks.size(); ++rank) {
    all.push_back(share_of_cores(of_ranks, rank));
  }
  return all;
}

TEST(CoresTest, RanksThatAreBoundToNothingShareTheMachine) {
  EXPECT_EQ(shares({4, cores(0, 16)}), (std::vector<int>{4, 4, 4, 4}));
}

// As mpirun binds more than two ranks: to sockets or to parts of the memory.
TEST(CoresTest, RanksOfASocketShareItsCoresAlone) {
  const cpu_set_t first = cores(0, 8), second = cores(8, 16);
  EXPECT_EQ(shares({first, second, first, second}), (std::vector<int>{4, 4, 4, 4}));
  EXPECT_EQ(shares({first, second, first}), (std::vector<int>{4, 8, 4}));
}

TEST(CoresTest, ARankHasTheCoresToWhichItAloneIsBound) {
  EXPECT_EQ(shares({cores(0, 1), cores(1, 2), cores(2, 4)}), (std::vector<int>{1, 1, 2}));
}

TEST(CoresTest, MoreRanksThanCoresHaveOneEach) {
  EXPECT_EQ(shares({3, cores(0, 2)}), (std::vector<int>{1, 1, 1}));
}

TEST(CoresTest, ARankWhoseCoresAreUnknownHasOne) {
  EXPECT_EQ(shares({cores(0, 0), cores(0, 4)}), (std::vector<int>{1, 4}));
}

TEST(CoresTest, ThisProcessMayRunSomewhere) {
  const cpu_set_t mine = allowed_cores();
  EXPECT_GE(CPU_COUNT(&mine), 1);
}

}  // namespace
}  // namespace switchyard
