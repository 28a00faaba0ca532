// The communicator over NCCL in groups of a thousand ranks. This process plays all ranks; the
// emulated NCCL moves their bytes, and emulated kernels add.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/tensor.h"
#include "parallel/counting_communicator.h"
#include "parallel/nccl_communicator.h"
#include "parallel/parallel_layout.h"
#include "parallel/watchdog.h"

namespace switchyard {
namespace {

constexpr Device kDevice{DeviceKind::cuda, 0};

// What a rank of the world has.
struct Rank {
  std::unique_ptr<Communicator> host;
  std::shared_ptr<NcclGroup> devices;
  std::unique_ptr<Stream> stream = std::make_unique<Stream>(kDevice);
};

class ScaleTest : public testing::Test {
 protected:
  // All ranks, in their order. The communicators of the host only count, because no collective of
  // these tests uses them.
  std::vector<Rank> make_world(int size) {
    std::vector<Rank> ranks;
    for (int r = 0; r < size; ++r) {
      Rank& rank = ranks.emplace_back();
      rank.host = make_counting_communicator(r, size, "world");
      rank.devices = make_nccl_world(*rank.host, kDevice, watchdog_);
    }
    return ranks;
  }
  static std::unique_ptr<Communicator> communicator_of(Rank& rank) {
    return make_nccl_communicator(std::move(rank.host), rank.devices);
  }
  static void synchronize(const std::vector<Rank>& ranks) {
    for (const Rank& rank : ranks) rank.stream->synchronize();
  }

  // Inexact in every floating dtype, so that another order of summation gives other bits.
  static float element(int rank, int64_t i) {
    return 1000.0f * std::sin(static_cast<float>(i + 113 * rank));
  }
  template <class T>
  static Tensor tensor_of(int rank, int64_t n) {
    Tensor tensor({n}, dtype_of<T>(), kDevice);
    for (int64_t i = 0; i < n; ++i) tensor.data<T>()[i] = T(element(rank, i));
    return tensor;
  }
  template <class T>
  static T sum_in_rank_order(int ranks, int64_t i) {
    auto total = static_cast<float>(T(element(0, i)));
    for (int r = 1; r < ranks; ++r) total += static_cast<float>(T(element(r, i)));
    return T(total);
  }
  template <class T>
  static void expect_bits(const T& value, const T& expected, int rank) {
    EXPECT_EQ(std::memcmp(&value, &expected, sizeof(T)), 0)
        << "on rank " << rank << ": " << static_cast<float>(value) << ", not "
        << static_cast<float>(expected);
  }

  // The host fills and reads device memory here.
  const simt::DeviceMemoryAccess access_;
  Watchdog watchdog_{0};
};

TEST_F(ScaleTest, AThousandRanksSumInTheirOrder) {
  constexpr int kRanks = 1024;
  constexpr int64_t kElements = 3;
  std::vector<Rank> ranks = make_world(kRanks);
  std::vector<std::unique_ptr<Communicator>> world;
  std::vector<Tensor> data;
  for (int r = 0; r < kRanks; ++r) {
    world.push_back(communicator_of(ranks[static_cast<size_t>(r)]));
    data.push_back(tensor_of<float>(r, kElements));
  }

  for (size_t r = 0; r < kRanks; ++r) {
    world[r]->all_reduce(*ranks[r].stream, data[r], ReduceOp::sum);
  }
  synchronize(ranks);

  for (int64_t i = 0; i < kElements; ++i) {
    const auto expected = sum_in_rank_order<float>(kRanks, i);
    for (int r = 0; r < kRanks; ++r) {
      expect_bits(data[static_cast<size_t>(r)].data<float>()[i], expected, r);
    }
  }
}

// Each rank receives a message of every other.
TEST_F(ScaleTest, ThreeHundredRanksScatterSumsOfBf16InTheirOrder) {
  constexpr int kRanks = 300;
  std::vector<Rank> ranks = make_world(kRanks);
  std::vector<std::unique_ptr<Communicator>> world;
  std::vector<Tensor> in, out;
  for (int r = 0; r < kRanks; ++r) {
    world.push_back(communicator_of(ranks[static_cast<size_t>(r)]));
    in.push_back(tensor_of<bfloat16>(r, kRanks));
    out.emplace_back(Shape{1}, DType::bf16, kDevice);
  }

  for (size_t r = 0; r < kRanks; ++r) {
    world[r]->reduce_scatter(*ranks[r].stream, in[r], out[r]);
  }
  synchronize(ranks);

  for (int r = 0; r < kRanks; ++r) {
    expect_bits(out[static_cast<size_t>(r)].data<bfloat16>()[0],
                sum_in_rank_order<bfloat16>(kRanks, r), r);
  }
}

TEST_F(ScaleTest, TheGroupsOfALayoutOfAThousandRanksHoldItsRanks) {
  constexpr int kRanks = 1024;
  const ParallelLayout layout(kRanks, /*tp=*/8, /*ep=*/64);
  const std::vector<Rank> world = make_world(kRanks);
  using GroupOf = std::vector<int> (ParallelLayout::*)(int) const;
  for (const GroupOf group_of : {&ParallelLayout::tp_group, &ParallelLayout::dp_group,
                                 &ParallelLayout::ep_group, &ParallelLayout::edp_group}) {
    std::vector<std::unique_ptr<Communicator>> groups;
    std::vector<Tensor> mine, all;
    for (int r = 0; r < kRanks; ++r) {
      const std::vector<int> members = (layout.*group_of)(r);
      const auto size = static_cast<int>(members.size());
      const auto place = static_cast<int>(std::ranges::find(members, r) - members.begin());
      groups.push_back(make_nccl_communicator(
          make_counting_communicator(place, size, "part"),
          split_nccl_group(*world[static_cast<size_t>(r)].devices, members.front(), "part")));
      mine.emplace_back(Shape{1}, DType::i32, kDevice);
      mine.back().data<int32_t>()[0] = r;
      all.emplace_back(Shape{size}, DType::i32, kDevice);
    }

    for (size_t r = 0; r < kRanks; ++r) {
      groups[r]->all_gather(*world[r].stream, mine[r], all[r]);
    }
    synchronize(world);

    for (int r = 0; r < kRanks; ++r) {
      const std::vector<int> members = (layout.*group_of)(r);
      const auto* gathered = all[static_cast<size_t>(r)].data<int32_t>();
      EXPECT_TRUE(std::equal(members.begin(), members.end(), gathered)) << "on rank " << r;
    }
  }
}

}  // namespace
}  // namespace switchyard
