// What every communicator must do, on MPI groups of all sizes and on the group of one rank.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/check.h"
#include "mpi/mpi_test.h"
#include "parallel/distributed_context.h"
#include "support/test_tensors.h"

namespace switchyard {
namespace {

using test::test_mpi;

class CommunicatorTest : public testing::TestWithParam<bool> {
 protected:
  CommunicatorTest() : alone_(make_self_communicator("alone")) {}

  // The world, or a group of one.
  Communicator& group() { return GetParam() ? test_mpi().world() : *alone_; }
  int size() { return group().size(); }
  int rank() { return group().rank(); }

  Stream stream_;
  std::unique_ptr<Communicator> alone_;
};

// Below and above the size up to which all ranks reduce everything; and more than one block.
constexpr int64_t kSizes[] = {0, 1, 33, 4096, 4097, 100003, (int64_t{1} << 18) * 2 + 5};

TEST_P(CommunicatorTest, AllReduceAddsInTheOrderOfTheRanks) {
  for (const int64_t n : kSizes) {
    std::vector<float> data(static_cast<size_t>(n)), expected(data.size());
    const auto value = [](int r, int64_t i) {
      return std::sin(static_cast<float>(i % 1000) + 0.3f * static_cast<float>(r));
    };
    for (int64_t i = 0; i < n; ++i) {
      data[static_cast<size_t>(i)] = value(rank(), i);
      float total = value(0, i);
      for (int r = 1; r < size(); ++r) total += value(r, i);
      expected[static_cast<size_t>(i)] = total;
    }

    group().all_reduce(stream_, view_of(std::span(data)), ReduceOp::sum);

    EXPECT_EQ(data, expected) << n;  // bit for bit, on every rank
  }
}

TEST_P(CommunicatorTest, Bf16IsSummedInF32AndRoundedOnce) {
  for (const int64_t n : {int64_t{5}, int64_t{20000}}) {
    Tensor data({n}, DType::bf16);
    for (int64_t i = 0; i < n; ++i) {
      data.data<bfloat16>()[i] = bfloat16(rank() == 0 ? 256.0f : 1.0f);
    }

    group().all_reduce(stream_, data, ReduceOp::sum);

    // One by one in bf16, 256 + 1 would stay 256.
    const bfloat16 expected(256.0f + static_cast<float>(size() - 1));
    EXPECT_EQ(data.data<bfloat16>()[n - 1].bits, expected.bits);
  }
}

TEST_P(CommunicatorTest, OtherDtypesAndOperations) {
  double f64 = 0.5 + rank();
  int32_t i32 = rank();
  int64_t i64 = int64_t{1} << 40;

  group().all_reduce(stream_, view_of(std::span(&f64, 1)), ReduceOp::max);
  group().all_reduce(stream_, view_of(std::span(&i32, 1)), ReduceOp::min);
  group().all_reduce(stream_, view_of(std::span(&i64, 1)), ReduceOp::sum);

  EXPECT_EQ(f64, 0.5 + size() - 1);
  EXPECT_EQ(i32, 0);
  EXPECT_EQ(i64, (int64_t{1} << 40) * size());
}

TEST_P(CommunicatorTest, NanSurvivesMaxAndMin) {
  for (const ReduceOp op : {ReduceOp::max, ReduceOp::min}) {
    float value = rank() == size() - 1 ? NAN : static_cast<float>(rank());
    group().all_reduce(stream_, view_of(std::span(&value, 1)), op);
    EXPECT_TRUE(std::isnan(value));
  }
}

TEST_P(CommunicatorTest, BroadcastGivesTheRootsData) {
  std::vector<uint8_t> data(100, static_cast<uint8_t>(rank()));

  group().broadcast(stream_, view_of(std::span(data)), size() - 1);

  EXPECT_EQ(data, std::vector<uint8_t>(100, static_cast<uint8_t>(size() - 1)));
}

TEST_P(CommunicatorTest, AllGatherJoinsInRankOrderAlsoInPlace) {
  constexpr int64_t kCount = 37;
  std::vector<int32_t> out(static_cast<size_t>(kCount * size()), -1);
  const TensorView whole = view_of(std::span(out));
  const TensorView mine = whole.rows(rank() * kCount, kCount);
  std::fill_n(mine.data<int32_t>(), kCount, rank());
  std::vector<int32_t> apart(out.size(), -1);

  group().all_gather(stream_, mine, view_of(std::span(apart)));
  group().all_gather(stream_, mine, whole);

  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_EQ(out[i], static_cast<int32_t>(i) / kCount);
    EXPECT_EQ(apart[i], out[i]);
  }
}

TEST_P(CommunicatorTest, ReduceScatterGivesASliceOfTheSumAlsoInPlace) {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}, (int64_t{1} << 18) + 3}) {
    std::vector<float> in(static_cast<size_t>(n * size()));
    for (size_t i = 0; i < in.size(); ++i) {
      in[i] = static_cast<float>(i % 512) * static_cast<float>(rank() + 1);
    }
    std::vector<float> expected(static_cast<size_t>(n));
    const float factor = static_cast<float>(size() * (size() + 1)) / 2.0f;
    for (int64_t i = 0; i < n; ++i) {
      expected[static_cast<size_t>(i)] = static_cast<float>((rank() * n + i) % 512) * factor;
    }
    std::vector<float> out(static_cast<size_t>(n));
    const TensorView whole = view_of(std::span(in));

    group().reduce_scatter(stream_, whole, view_of(std::span(out)));
    EXPECT_EQ(out, expected) << n;

    const TensorView mine = whole.rows(rank() * n, n);
    group().reduce_scatter(stream_, whole, mine);
    EXPECT_EQ(std::vector<float>(mine.data<float>(), mine.data<float>() + n), expected) << n;
  }
}

// Rank r sends r + s rows to rank s, so some counts are zero and all differ.
TEST_P(CommunicatorTest, AllToAllVMovesRaggedRows) {
  const auto count = [](int from, int to) { return int64_t{from} + to; };
  std::vector<int64_t> send, receive;
  for (int r = 0; r < size(); ++r) {
    send.push_back(count(rank(), r));
    receive.push_back(count(r, rank()));
  }
  const auto total = [](const std::vector<int64_t>& counts) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0});
  };
  Tensor in({total(send), 3}, DType::i32), out({total(receive), 3}, DType::i32);
  int64_t row = 0;
  for (int to = 0; to < size(); ++to) {
    for (int64_t i = 0; i < count(rank(), to); ++i, ++row) {
      for (int c = 0; c < 3; ++c) {
        in.data<int32_t>()[row * 3 + c] =
            static_cast<int32_t>(10000 * rank() + 100 * to + 3 * i + c);
      }
    }
  }

  group().all_to_all_v(stream_, in, send, out, receive);

  row = 0;
  for (int from = 0; from < size(); ++from) {
    for (int64_t i = 0; i < count(from, rank()); ++i, ++row) {
      EXPECT_EQ(out.data<int32_t>()[row * 3 + 2], 10000 * from + 100 * rank() + 3 * i + 2);
    }
  }
}

TEST_P(CommunicatorTest, RefusesShapesThatDoNotFit) {
  std::vector<float> in(static_cast<size_t>(size()) + 1), out(1);
  EXPECT_THROW(group().reduce_scatter(stream_, view_of(std::span(in)), view_of(std::span(out))),
               Error);
}

INSTANTIATE_TEST_SUITE_P(Groups, CommunicatorTest, testing::Values(false, true),
                         [](const auto& tested) { return tested.param ? "Mpi" : "Self"; });

TEST(DistributedContextTest, GroupsHaveTheSizesAndRanksOfTheLayout) {
  const int world = test_mpi().world_size();
  const ParallelLayout layout(world, world >= 2 ? 2 : 1, world);
  const DistributedContext dist(test_mpi(), layout);

  EXPECT_EQ(dist.tp().size(), layout.tp());
  EXPECT_EQ(dist.tp().rank(), layout.tp_rank(dist.rank()));
  EXPECT_EQ(dist.dp().size(), layout.dp());
  EXPECT_EQ(dist.dp().rank(), layout.dp_rank(dist.rank()));
  EXPECT_EQ(dist.ep().size(), world);
  EXPECT_EQ(dist.edp().size(), 1);
}

TEST(RunCollectivelyTest, TheLowestFailingRankSpeaksForAll) {
  Communicator& world = test_mpi().world();
  const int first = world.size() / 2;
  std::string message;
  try {
    run_collectively(world,
                     [&] { require(world.rank() < first, "rank {} has no file", world.rank()); });
  } catch (const CollectiveError& error) {
    message = error.what();
  }

  EXPECT_NE(message.find(std::to_string(first) + " has no file"), std::string::npos) << message;
  EXPECT_NO_THROW(run_collectively(world, [] {}));
}

}  // namespace
}  // namespace switchyard
