#include "parallel/counting_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/runtime/tensor.h"
#include "parallel/distributed_context.h"
#include "tests/support/error_of.h"

namespace switchyard {
namespace {

using test::error_of;
using testing::HasSubstr;

class CountingCommunicatorTest : public testing::TestWithParam<DeviceKind> {
 protected:
  Tensor tensor(const Shape& shape, DType dtype = DType::f32) const {
    return Tensor(shape, dtype, device_);
  }

  const Device device_ = counting_device(GetParam());
  Stream stream_{device_};
  const std::unique_ptr<Communicator> group_ = make_counting_communicator(2, 4, "ep");
};

INSTANTIATE_TEST_SUITE_P(Devices, CountingCommunicatorTest,
                         testing::Values(DeviceKind::cpu, DeviceKind::cuda), [](const auto& kind) {
                           return kind.param == DeviceKind::cpu ? "cpu" : "cuda";
                         });

TEST_P(CountingCommunicatorTest, KnowsItsPlace) {
  EXPECT_EQ(group_->rank(), 2);
  EXPECT_EQ(group_->size(), 4);
  EXPECT_EQ(group_->name(), "ep");
}

TEST_P(CountingCommunicatorTest, AcceptsEveryCollectiveOnTensorsThatAreNotThere) {
  const std::vector<int64_t> send = {1, 0, 2, 3}, receive = {4, 0, 0, 5};
  Tensor sent = tensor({6, 8}), received = tensor({9, 8}), all = tensor({24, 8});

  group_->barrier(stream_);
  group_->broadcast(stream_, sent, 3);
  group_->all_reduce(stream_, sent, ReduceOp::max);
  group_->all_gather(stream_, sent, all);
  group_->reduce_scatter(stream_, all, sent);
  group_->start_reduce_scatter(stream_, all, sent)->wait(stream_);
  group_->all_to_all_v(stream_, sent, send, received, receive);
}

TEST_P(CountingCommunicatorTest, LeavesHostMemoryAsItIs) {
  std::vector<int64_t> mine = {1, 2}, all(8, 7);

  group_->all_reduce(stream_, view_of(std::span(mine)), ReduceOp::sum);
  group_->all_gather(stream_, view_of(std::span(mine)), view_of(std::span(all)));

  EXPECT_EQ(mine, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(all, std::vector<int64_t>(8, 7));
}

TEST_P(CountingCommunicatorTest, RefusesWhatOthersRefuse) {
  const std::vector<int64_t> rows = {1, 0, 2, 3}, too_few = {6};
  Tensor six = tensor({6, 8}), nine = tensor({9, 8}), bytes = tensor({4}, DType::u8);

  EXPECT_THAT(error_of([&] { group_->broadcast(stream_, six, 4); }),
              HasSubstr("broadcast from rank 4 of 4"));
  EXPECT_THAT(error_of([&] { group_->all_reduce(stream_, bytes, ReduceOp::sum); }),
              HasSubstr("u8 is not reduced"));
  EXPECT_THAT(error_of([&] { group_->all_gather(stream_, six, nine); }), HasSubstr("all_gather"));
  EXPECT_THAT(error_of([&] { group_->reduce_scatter(stream_, six, nine); }),
              HasSubstr("reduce_scatter"));
  EXPECT_THAT(error_of([&] { group_->all_to_all_v(stream_, six, rows, nine, rows); }),
              HasSubstr("9 to receive but 6 counted"));
  EXPECT_THAT(error_of([&] { group_->all_to_all_v(stream_, six, too_few, six, rows); }),
              HasSubstr("has 1 counts to send"));
  EXPECT_THAT(error_of([] { make_counting_communicator(4, 4, "tp"); }),
              HasSubstr("rank 4 of a group of 4 ranks"));
}

TEST(CountingContextTest, GroupsAreThoseOfTheLayout) {
  const ParallelLayout layout(/*world_size=*/16384, /*tp=*/8, /*ep=*/64);
  for (const int rank : {0, 7, 8, 5000, 16383}) {
    const DistributedContext dist = DistributedContext::counting(layout, rank);

    EXPECT_EQ(dist.layout(), layout);
    EXPECT_EQ(dist.rank(), rank);
    EXPECT_EQ(dist.world().size(), 16384);
    EXPECT_EQ(dist.tp().size(), 8);
    EXPECT_EQ(dist.tp().rank(), rank % 8);
    EXPECT_EQ(dist.dp().size(), 2048);
    EXPECT_EQ(dist.dp().rank(), rank / 8);
    EXPECT_EQ(dist.ep().size(), 64);
    EXPECT_EQ(dist.ep().rank(), rank % 64);
    EXPECT_EQ(dist.edp().size(), 256);
    EXPECT_EQ(dist.edp().rank(), rank / 64);
    EXPECT_FALSE(dist.transfers_behind_compute());
  }
}

TEST(CountingContextTest, RefusesARankThatTheLayoutLacks) {
  EXPECT_THAT(error_of([] { DistributedContext::counting(ParallelLayout(4, 2, 4), 4); }),
              HasSubstr("rank 4 of a group of 4 ranks"));
}

class SeenCollectives final : public CollectiveObserver {
 public:
  int64_t start(const Collective& collective) override {
    kinds.push_back(collective.kind);
    bytes.push_back(collective.bytes);
    sent.assign(collective.sent.begin(), collective.sent.end());
    received.assign(collective.received.begin(), collective.received.end());
    return static_cast<int64_t>(kinds.size());
  }
  void wait(int64_t number) override { waited.push_back(number); }

  std::vector<CollectiveKind> kinds;
  std::vector<int64_t> bytes, sent, received, waited;
};

TEST_P(CountingCommunicatorTest, TellsAnObserverWhatMovesAndWhenItIsNeeded) {
  SeenCollectives seen;
  const auto group = make_counting_communicator(1, 2, "ep", &seen);
  const std::vector<int64_t> to = {1, 2}, from = {3, 1};

  group->all_gather(stream_, tensor({2, 3}), tensor({4, 3}));
  auto rows = group->start_all_to_all_v(stream_, tensor({3, 5}), to, tensor({4, 5}), from);
  auto sums = group->start_reduce_scatter(stream_, tensor({4, 2}), tensor({2, 2}));
  EXPECT_THAT(seen.waited, testing::ElementsAre(1));
  sums->wait(stream_);
  rows->wait(stream_);

  EXPECT_THAT(seen.kinds,
              testing::ElementsAre(CollectiveKind::all_gather, CollectiveKind::all_to_all,
                                   CollectiveKind::reduce_scatter));
  EXPECT_THAT(seen.bytes, testing::ElementsAre(48, 80, 32));
  EXPECT_THAT(seen.waited, testing::ElementsAre(1, 3, 2));
}

TEST_P(CountingCommunicatorTest, AnAllToAllTellsTheBytesOfEveryPeer) {
  SeenCollectives seen;
  const auto group = make_counting_communicator(1, 2, "ep", &seen);
  const std::vector<int64_t> to = {1, 2}, from = {3, 1};

  group->all_to_all_v(stream_, tensor({3, 5}), to, tensor({4, 5}), from);

  EXPECT_THAT(seen.sent, testing::ElementsAre(20, 40));
  EXPECT_THAT(seen.received, testing::ElementsAre(60, 20));
}

TEST_P(CountingCommunicatorTest, SeveralAllToAllsAreOneCollective) {
  SeenCollectives seen;
  const auto group = make_counting_communicator(1, 2, "ep", &seen);
  const std::vector<int64_t> to = {1, 2}, from = {3, 1};

  const Communicator::AllToAll exchanges[] = {{tensor({3, 5}), to, tensor({4, 5}), from},
                                              {tensor({4, 2}), from, tensor({3, 2}), to}};
  group->start_all_to_alls(stream_, exchanges)->wait(stream_);

  EXPECT_THAT(seen.bytes, testing::ElementsAre(104));
  EXPECT_THAT(seen.sent, testing::ElementsAre(20 + 24, 40 + 8));
  EXPECT_THAT(seen.received, testing::ElementsAre(60 + 8, 20 + 16));
}

TEST_P(CountingCommunicatorTest, AGroupOfOneMovesNothing) {
  SeenCollectives seen;
  const auto group = make_counting_communicator(0, 1, "ep", &seen);

  group->all_gather(stream_, tensor({2, 3}), tensor({2, 3}));

  EXPECT_TRUE(seen.kinds.empty());
}

}  // namespace
}  // namespace switchyard
