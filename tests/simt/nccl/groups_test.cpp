// Several NCCL groups of a rank at the same time, on four ranks with an emulated device each.
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nccl.h>

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "mpi/mpi_test.h"
#include "optim/distributed_optimizer.h"
#include "tests/simt/failures.h"
#include "tests/support/error_of.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using namespace std::chrono_literals;
using test::test_mpi;
using testing::HasSubstr;

DistributedContext context(int tp, int ep) {
  return {test_mpi(), ParallelLayout(test_mpi().world_size(), tp, ep), test::device()};
}

// A tensor of this rank and those of all ranks of a group, gathered behind a stream of its own.
struct Gathering {
  explicit Gathering(Communicator& communicator)
      : group(communicator),
        mine(test::make_tensor({1}, std::vector<int32_t>{test_mpi().rank()})),
        all({communicator.size()}, DType::i32) {}

  void start() { pending = group.start_all_gather(stream, mine, all); }
  void finish() {
    pending->wait(stream);
    stream.synchronize();
  }

  Communicator& group;
  test::Stream stream;
  test::Tensor mine, all;
  std::unique_ptr<PendingCollective> pending;
};

bool is_even_rank() { return test_mpi().rank() % 2 == 0; }

// A rank that needs the second result first must not begin its second operation first: the kernels
// of both would wait for other ranks, and might leave no room for those that these wait for.
TEST(NcclGroupsTest, OperationsOfAllGroupsBeginInTheOrderOfTheHost) {
  const DistributedContext dist = context(/*tp=*/2, /*ep=*/1);
  Gathering world(dist.world()), tp(dist.tp());
  world.start();
  tp.start();

  (is_even_rank() ? world : tp).finish();
  (is_even_rank() ? tp : world).finish();

  EXPECT_EQ(test::to_vector<int32_t>(world.all), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(test::to_vector<int32_t>(tp.all), dist.layout().tp_group(dist.rank()));
}

TEST(NcclGroupsTest, GroupsOfEqualRanksShareACommunicator) {
  struct Case {
    int tp, ep, communicators;
  };
  // (1, 1): all but tp and ep, which have one rank, are the world. (2, 2): tp is ep and dp is edp.
  for (const Case& c :
       {Case{1, 1, 1}, Case{2, 1, 3}, Case{1, 2, 3}, Case{2, 2, 3}, Case{2, 4, 3}}) {
    const int before = simt::nccl_communicators();
    const DistributedContext dist = context(c.tp, c.ep);
    EXPECT_EQ(simt::nccl_communicators() - before, c.communicators) << to_string(dist.layout());
    EXPECT_EQ(dist.dp().name(), "dp");
  }
}

// A connection between two ranks takes memory on both devices.
TEST(NcclGroupsTest, OnlyGroupsThatExchangeRowsAreWarmedWithMessagesBetweenAllRanks) {
  const int64_t before = simt::nccl_messages();
  context(/*tp=*/1, /*ep=*/1);
  EXPECT_EQ(simt::nccl_messages(), before);

  context(/*tp=*/1, /*ep=*/4);
  EXPECT_EQ(simt::nccl_messages() - before, 2 * 4);  // a row to and from each rank, itself too
}

// NCCL connects ranks for an algorithm when it first chooses it, by the size of a collective.
TEST(NcclGroupsTest, TheOptimizerRunsTheCollectivesOfAllBucketsBeforeTheFirstStep) {
  const DistributedContext dist = context(/*tp=*/1, /*ep=*/1);
  test::Stream stream;
  ParameterStore store(/*bucket_elements=*/1);
  for (const char* name : {"first", "second", "third"}) {
    store.begin_stage();
    store.add({.name = name,
               .global_shape = {8},
               .offset = {0},
               .extent = {8},
               .init = Init::normal(1.0f)});
  }
  store.materialize(stream, /*seed=*/1, dist.world().size());
  const std::vector<float> values = test::to_floats(store.buffers()[0].values);
  const int64_t before = simt::nccl_operations();

  const DistributedOptimizer optimizer(stream, {}, store, dist);

  EXPECT_EQ(simt::nccl_operations() - before, 2 * 3);
  EXPECT_EQ(test::to_floats(store.buffers()[0].values), values);
  EXPECT_EQ(test::to_floats(store.buffers()[0].grads), std::vector<float>(64, 0.0f));
}

TEST(NcclGroupsTest, AFailedCallLeavesNoGroupOfCallsOpen) {
  const DistributedContext dist = context(/*tp=*/1, /*ep=*/4);
  Gathering gathering(dist.world());
  test::Tensor in({4}, DType::i32), out({4}, DType::i32);
  const std::vector<int64_t> one_each(4, 1);

  const std::string error = test::error_of([&] {
    const simt::PlannedFailure failure("ncclSend:2");
    dist.ep().all_to_all_v(gathering.stream, in, one_each, out, one_each);
  });
  gathering.start();
  gathering.finish();

  EXPECT_THAT(error, HasSubstr("ncclSend failed in group ep: unhandled system error"));
  EXPECT_EQ(test::to_vector<int32_t>(gathering.all), (std::vector<int32_t>{0, 1, 2, 3}));
}

// Half a gigabyte of the first device for every other rank of its machine.
TEST(NcclGroupsTest, NoThreadUsesTheDeviceOfAnotherRank) {
  const DistributedContext dist = context(/*tp=*/1, /*ep=*/1);
  test_mpi().watchdog().start(60s, test::device());
  Gathering gathering(dist.world());

  gathering.start();
  std::this_thread::sleep_for(600ms);  // the watchdog asks whether it has finished
  gathering.finish();

  for (int d = 0; d < test_mpi().world_size(); ++d) {
    EXPECT_EQ(simt::has_context(d), d == test::device().index) << "device " << d;
  }
}

// Of the emulation: it finds the mistake that real devices show by hanging now and then.
TEST(NcclOrderTest, AnOrderThatDiffersBetweenRanksIsAnError) {
  const DistributedContext dist = context(/*tp=*/2, /*ep=*/1);
  Gathering world(dist.world()), tp(dist.tp());

  (is_even_rank() ? world : tp).start();
  (is_even_rank() ? tp : world).start();

  const std::string error = test::error_of([&] {
    world.finish();
    tp.finish();
  });
  EXPECT_THAT(error, HasSubstr("ranks differ in their operation"));
}

}  // namespace
}  // namespace switchyard
