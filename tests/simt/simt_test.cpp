// The emulation itself: what it computes, and what it catches.
#include "tests/simt/simt.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/tensor.h"
#include "tests/support/error_of.h"

namespace switchyard {
namespace {

using cuda::launch;
using test::error_of;
using testing::HasSubstr;

class SimtTest : public testing::Test {
 protected:
  Stream stream_{Device{DeviceKind::cuda, 0}};
};

__global__ void write_linear_index(int* out) {
  const unsigned int thread = threadIdx.y * blockDim.x + threadIdx.x;
  out[blockIdx.x * blockDim.x * blockDim.y + thread] = static_cast<int>(blockIdx.x * 100 + thread);
}

TEST_F(SimtTest, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> out(3 * 40, -1);

  launch(write_linear_index, dim3(3), dim3(20, 2), 0, stream_, out.data());

  for (int b = 0; b < 3; ++b) {
    for (int t = 0; t < 40; ++t) EXPECT_EQ(out[static_cast<size_t>(b * 40 + t)], b * 100 + t);
  }
}

// Sums 1 .. blockDim.x by halving; `steps_with_barrier` false leaves the barriers out.
__global__ void tree_sum(bool with_barriers, int* out) {
  int* values = cuda::dynamic_shared<int>();
  const unsigned int t = threadIdx.x;
  values[t] = static_cast<int>(t) + 1;
  if (with_barriers) __syncthreads();
  for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) values[t] += values[t + half];
    if (with_barriers) __syncthreads();
  }
  if (t == 0) *out = values[0];
}

TEST_F(SimtTest, ABarrierOrdersSharedMemory) {
  int sum = 0;

  launch(tree_sum, dim3(1), dim3(256), 256 * sizeof(int), stream_, true, &sum);

  EXPECT_EQ(sum, 256 * 257 / 2);
}

TEST_F(SimtTest, AMissingBarrierShows) {
  int sum = 0;

  launch(tree_sum, dim3(1), dim3(256), 256 * sizeof(int), stream_, false, &sum);

  EXPECT_NE(sum, 256 * 257 / 2);
}

__global__ void divergent_barrier() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST_F(SimtTest, TwoBarriersAtOnceAreNamed) {
  EXPECT_THAT(error_of([&] { launch(divergent_barrier, dim3(1), dim3(64), 0, stream_); }),
              HasSubstr("different barriers"));
}

__global__ void shuffle_without_all_lanes(int* out) {
  if (threadIdx.x < 16) *out = __shfl_sync(0xffffffffu, 1, 0);
}

TEST_F(SimtTest, LanesThatNeverComeAreNoticed) {
  int out = 0;
  EXPECT_THAT(
      error_of([&] { launch(shuffle_without_all_lanes, dim3(1), dim3(32), 0, stream_, &out); }),
      HasSubstr("wait for ever"));
}

__global__ void shuffles(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  out[lane] = __shfl_xor_sync(0xffffffffu, lane, 5);
  out[32 + lane] = __shfl_up_sync(0xffffffffu, lane, 3);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, lane, 3, 8);
  out[96 + lane] = __shfl_sync(0xffffffffu, lane, 2, 4);
  out[128 + lane] = __reduce_add_sync(0xffffffffu, lane);
  out[160 + lane] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
}

TEST_F(SimtTest, ShufflesAndVotesFollowCuda) {
  std::vector<int> out(192);

  launch(shuffles, dim3(1), dim3(32), 0, stream_, out.data());

  uint32_t ballot = 0;
  for (int l = 0; l < 32; l += 3) ballot |= 1u << l;
  for (int l = 0; l < 32; ++l) {
    const auto at = [&](int row) { return out[static_cast<size_t>(row * 32 + l)]; };
    EXPECT_EQ(at(0), l ^ 5);
    EXPECT_EQ(at(1), l < 3 ? l : l - 3);
    EXPECT_EQ(at(2), l % 8 < 5 ? l + 3 : l);
    EXPECT_EQ(at(3), l / 4 * 4 + 2);
    EXPECT_EQ(at(4), 31 * 32 / 2);
    EXPECT_EQ(static_cast<uint32_t>(at(5)), ballot);
  }
}

TEST_F(SimtTest, LaunchesThatADeviceRefusesAreRefused) {
  int out = 0;
  EXPECT_THAT(error_of([&] { launch(write_linear_index, dim3(1), dim3(1025), 0, stream_, &out); }),
              HasSubstr("1025 threads"));
}

using SimtDeathTest = SimtTest;

TEST_F(SimtDeathTest, TheHostCannotTouchDeviceMemory) {
  Tensor tensor({4}, DType::i32, Device{DeviceKind::cuda, 0});

  EXPECT_DEATH(tensor.data<int32_t>()[0] = 1, "");
}

}  // namespace
}  // namespace switchyard
