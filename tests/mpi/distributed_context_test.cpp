#include "parallel/distributed_context.h"

#include <gtest/gtest.h>

#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "mpi/mpi_test.h"

namespace switchyard {
namespace {

using test::test_mpi;

TEST(DistributedContextTest, GroupsHaveTheSizesAndRanksOfEveryLayout) {
  const int world = test_mpi().world_size();
  for (int tp = 1; tp <= world; tp *= 2) {
    for (int ep = 1; ep <= world; ep *= 2) {
      const ParallelLayout layout(world, tp, ep);
      const DistributedContext dist(test_mpi(), layout);
      const int rank = dist.rank();

      EXPECT_EQ(rank, test_mpi().rank());
      EXPECT_EQ(dist.tp().size(), layout.tp());
      EXPECT_EQ(dist.tp().rank(), layout.tp_rank(rank));
      EXPECT_EQ(dist.dp().size(), layout.dp());
      EXPECT_EQ(dist.dp().rank(), layout.dp_rank(rank));
      EXPECT_EQ(dist.ep().size(), layout.ep());
      EXPECT_EQ(dist.ep().rank(), layout.ep_rank(rank));
      EXPECT_EQ(dist.edp().size(), layout.edp());
      EXPECT_EQ(dist.edp().rank(), layout.edp_rank(rank));
    }
  }
}

TEST(DistributedContextTest, GroupsHoldTheRanksOfTheLayout) {
  const int world = test_mpi().world_size();
  const ParallelLayout layout(world, world >= 2 ? 2 : 1, world >= 4 ? 4 : 1);
  const DistributedContext dist(test_mpi(), layout);
  Stream stream;
  const auto members = [&](Communicator& group) {
    int32_t mine = dist.rank();
    std::vector<int32_t> all(static_cast<size_t>(group.size()));
    group.all_gather(stream, view_of(std::span(&mine, 1)), view_of(std::span(all)));
    return all;
  };

  EXPECT_EQ(members(dist.tp()), layout.tp_group(dist.rank()));
  EXPECT_EQ(members(dist.dp()), layout.dp_group(dist.rank()));
  EXPECT_EQ(members(dist.ep()), layout.ep_group(dist.rank()));
  EXPECT_EQ(members(dist.edp()), layout.edp_group(dist.rank()));
}

TEST(DistributedContextTest, RefusesALayoutOfAnotherWorld) {
  EXPECT_THROW(DistributedContext(test_mpi(), ParallelLayout(2 * test_mpi().world_size(), 1, 1)),
               Error);
}

// The message of the Error that run_collectively throws for `body`; empty if it throws none.
std::string message_of(Communicator& group, const std::function<void()>& body) {
  try {
    run_collectively(group, body);
  } catch (const CollectiveError& error) {
    return error.what();
  }
  return "";
}

TEST(RunCollectivelyTest, TheLowestFailingRankSpeaksForAll) {
  Communicator& world = test_mpi().world();
  for (int first = 0; first < world.size(); ++first) {
    const std::string message = message_of(world, [&] {
      if (world.rank() >= first) throw Error("rank " + std::to_string(world.rank()) + " lost it");
    });

    const std::string own = "rank " + std::to_string(first);
    EXPECT_EQ(message, (world.size() > 1 ? own + ": " : "") + own + " lost it");
  }
}

TEST(RunCollectivelyTest, AnErrorWithoutAMessageIsAnErrorToo) {
  EXPECT_NE(message_of(test_mpi().world(), [] { throw std::runtime_error(""); }), "");
}

TEST(RunCollectivelyTest, GoesOnAfterSuccessAndAfterFailure) {
  Communicator& world = test_mpi().world();
  int runs = 0;

  message_of(world, [&] { require(world.rank() != world.size() - 1, "the last rank fails"); });
  EXPECT_NO_THROW(run_collectively(world, [&] { ++runs; }));

  EXPECT_EQ(runs, 1);
}

}  // namespace
}  // namespace switchyard
