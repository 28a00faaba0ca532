#include "parallel/rank_reduction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "mpi/mpi_test.h"

namespace switchyard {
namespace {

using test::test_mpi;

TEST(RankReductionTest, GivesSumsAndMaximaOnEveryRank) {
  const int rank = test_mpi().rank(), ranks = test_mpi().world_size();
  double loss = 0.5 * (rank + 1), slowest = -10.0 - rank;
  int64_t bytes = (int64_t{1} << 40) + rank, peak = rank == ranks / 2 ? 77 : 3;
  std::vector<double> counts = {1.0, static_cast<double>(rank)};
  RankReduction reduction(test_mpi().world());
  reduction.sum(loss);
  reduction.max(slowest);
  reduction.sum(bytes);
  reduction.max(peak);
  reduction.sum(counts);
  Stream stream;

  reduction.run(stream);

  const int64_t pairs = ranks * (ranks - 1) / 2;
  EXPECT_EQ(loss, 0.5 * static_cast<double>(pairs + ranks));
  EXPECT_EQ(slowest, -10.0);
  EXPECT_EQ(bytes, ranks * (int64_t{1} << 40) + pairs);
  EXPECT_EQ(peak, 77);
  EXPECT_EQ(counts, (std::vector<double>{static_cast<double>(ranks), static_cast<double>(pairs)}));
}

TEST(RankReductionTest, LeavesTheSumsWhereOpsCanReadThem) {
  const int rank = test_mpi().rank(), ranks = test_mpi().world_size();
  std::vector<double> counts = {1.0, static_cast<double>(rank)};
  double slowest = rank;
  int64_t bytes = 3;
  RankReduction reduction(test_mpi().world());
  reduction.sum(counts);
  reduction.max(slowest);
  reduction.sum(bytes);
  Stream stream;
  Workspace workspace;

  const TensorView sums = reduction.run(stream, workspace);

  const auto pairs = static_cast<double>(ranks * (ranks - 1) / 2);
  ASSERT_EQ(sums.shape(), (Shape{3}));
  EXPECT_EQ(sums.data<double>()[0], ranks);
  EXPECT_EQ(sums.data<double>()[1], pairs);
  EXPECT_EQ(sums.data<double>()[2], 3.0 * ranks);
  EXPECT_EQ(counts, (std::vector<double>{static_cast<double>(ranks), pairs}));
  EXPECT_EQ(slowest, ranks - 1);
  EXPECT_EQ(bytes, 3 * ranks);
}

TEST(RankReductionTest, ANanOfAnyRankIsSeenByAll) {
  const bool is_last = test_mpi().rank() == test_mpi().world_size() - 1;
  double sum = is_last ? std::numeric_limits<double>::quiet_NaN() : 1.0;
  double greatest = sum;
  RankReduction reduction(test_mpi().world());
  reduction.sum(sum);
  reduction.max(greatest);
  Stream stream;

  reduction.run(stream);

  EXPECT_TRUE(std::isnan(sum));
  EXPECT_TRUE(std::isnan(greatest));
}

}  // namespace
}  // namespace switchyard
