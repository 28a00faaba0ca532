// The emulation itself: its results, and the errors that it finds.
#include "tests/simt/simt.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/rope.h"
#include "kernels/basic/elementwise.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/support.h"
#include "kernels/runtime/profile.h"
#include "kernels/runtime/stopwatch.h"
#include "kernels/runtime/tensor.h"
#include "tests/simt/careless_kernel.h"
#include "tests/simt/failures.h"
#include "tests/support/error_of.h"

namespace switchyard {
namespace {

using cuda::launch;
using test::error_of;
using testing::HasSubstr;

class SimtTest : public testing::Test {
 protected:
  // Launches a kernel and waits for its end.
  template <class Kernel, class... Args>
  void run(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, Args&&... args) {
    launch(kernel, grid, block, shared_bytes, stream_, std::forward<Args>(args)...);
    stream_.synchronize();
  }

  Stream stream_{Device{DeviceKind::cuda, 0}};
};

__global__ void write_linear_index(int* out) {
  const unsigned int thread = threadIdx.y * blockDim.x + threadIdx.x;
  out[blockIdx.x * blockDim.x * blockDim.y + thread] = static_cast<int>(blockIdx.x * 100 + thread);
}

TEST_F(SimtTest, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> out(3 * 40, -1);

  run(write_linear_index, dim3(3), dim3(20, 2), 0, out.data());

  for (int b = 0; b < 3; ++b) {
    for (int t = 0; t < 40; ++t) EXPECT_EQ(out[static_cast<size_t>(b * 40 + t)], b * 100 + t);
  }
}

// Sums 1 .. blockDim.x by halving; without barriers if `with_barriers` is false.
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

  run(tree_sum, dim3(1), dim3(256), 256 * sizeof(int), true, &sum);

  EXPECT_EQ(sum, 256 * 257 / 2);
}

TEST_F(SimtTest, AMissingBarrierShows) {
  int sum = 0;

  run(tree_sum, dim3(1), dim3(256), 256 * sizeof(int), false, &sum);

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
  EXPECT_THAT(error_of([&] { run(divergent_barrier, dim3(1), dim3(64), 0); }),
              HasSubstr("different barriers"));
}

__global__ void shuffle_without_all_lanes(int* out) {
  if (threadIdx.x < 16) *out = __shfl_sync(0xffffffffu, 1, 0);
}

TEST_F(SimtTest, LanesThatNeverComeAreNoticed) {
  int out = 0;
  EXPECT_THAT(error_of([&] { run(shuffle_without_all_lanes, dim3(1), dim3(32), 0, &out); }),
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

  run(shuffles, dim3(1), dim3(32), 0, out.data());

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
  EXPECT_THAT(error_of([&] { run(write_linear_index, dim3(1), dim3(1025), 0, &out); }),
              HasSubstr("1025 threads"));
}

TEST_F(SimtTest, EveryBlockFindsStaticSharedMemoryPoisoned) {
  float out[] = {0.0f, 0.0f};

  test::read_uninitialised_shared_memory(stream_, out);
  stream_.synchronize();

  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_TRUE(std::isnan(out[1]));
}

// ---- Limits and failures -----------------------------------------------------------------------

// A variable of the environment for the lifetime of the object.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Setting() { unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

// As on an RTX 4090 or L40: f32 heads of more than 128 elements need 140 KiB.
TEST_F(SimtTest, AttentionNamesWhatADeviceWithLessSharedMemoryLacks) {
  const Setting limit("SWITCHYARD_EMULATED_SHARED_BYTES", std::to_string(99 * 1024));
  Workspace workspace(stream_.device());
  const auto attend = [&](int64_t head_dim) {
    const Tensor q({1, 1, 8, head_dim}, DType::f32, stream_.device());
    Tensor out({8, head_dim}, DType::f32, stream_.device());
    Tensor lse({1, 1, 8}, DType::f32, stream_.device());
    attention_forward(stream_, workspace, q, q, q, {}, 1.0f, out, lse);
    stream_.synchronize();
  };

  EXPECT_EQ(error_of([&] { attend(128); }), "");
  EXPECT_THAT(error_of([&] { attend(256); }),
              HasSubstr("attention with heads of 256 elements needs 137 KiB of shared memory for a "
                        "block of threads, and cuda:0 has 99 KiB; use a smaller model.head_dim"));
}

// A grid has up to 65,535 blocks in y, which 260,000 tokens of an odd head_dim would need.
TEST_F(SimtTest, RopeTakesAnyNumberOfTokens) {
  const Setting limit("SWITCHYARD_EMULATED_GRID", "2");
  Tensor x({3, 2, 300, 6}, DType::f32, stream_.device());
  const Tensor cos({300, 3}, DType::f32, stream_.device()),
      sin({300, 3}, DType::f32, stream_.device());

  EXPECT_EQ(error_of([&] {
              rope_in_place(stream_, cos, sin, 0, false, x);
              stream_.synchronize();
            }),
            "");
}

TEST_F(SimtTest, APlannedFailureIsStickyAsOnADevice) {
  const simt::PlannedFailure failure("cudaEventRecord:2");
  Event event(stream_.device());
  event.record(stream_);

  EXPECT_THAT(error_of([&] { event.record(stream_); }),
              HasSubstr("cudaEventRecord failed: an illegal memory access was encountered"));
  EXPECT_THAT(error_of([&] { stream_.synchronize(); }), HasSubstr("illegal memory access"));
}

// What has failed is said, and not hidden by a scope whose own last call fails then.
TEST_F(SimtTest, AFailureInATimedScopeIsTheOneThatIsSaid) {
  const simt::PlannedFailure failure("cudaStreamSynchronize:1");
  Stopwatch stopwatch(stream_.device());
  Profiler profiler(stream_);
  stream_.set_profiler(&profiler);

  EXPECT_THAT(error_of([&] {
                const ScopedTimer timer(stopwatch, stream_);
                const ScopedPart part(stream_, Part::norms);
                stream_.synchronize();
              }),
              HasSubstr("cudaStreamSynchronize failed: an illegal memory access"));
  // A scope that nothing has left fails by itself.
  EXPECT_THAT(error_of([&] { const ScopedTimer timer(stopwatch, stream_); }),
              HasSubstr("cudaEvent"));
  stream_.set_profiler(nullptr);
}

// ---- Streams -----------------------------------------------------------------------------------

__global__ void add_one(int* value) { *value += 1; }

// A producer and a consumer on two streams; the consumer copies what the producer writes.
class StreamsTest : public testing::Test {
 protected:
  static constexpr Device kDevice{DeviceKind::cuda, 0};

  void produce() { launch(add_one, dim3(1), dim3(1), 0, producer_, value_.data<int>()); }
  int consume() {
    int seen = -1;
    copy(consumer_, value_, view_of(std::span(&seen, 1)));
    consumer_.synchronize();
    return seen;
  }

  Stream producer_{kDevice}, consumer_{kDevice};
  Tensor value_{Shape{1}, DType::i32, kDevice};
};

TEST_F(StreamsTest, AConsumerThatDoesNotWaitReadsOldValues) {
  produce();
  EXPECT_EQ(consume(), 0);
}

TEST_F(StreamsTest, AnEventOrdersTwoStreams) {
  Event produced(kDevice);
  produce();
  produced.record(producer_);
  produce();

  consumer_.wait(produced);

  // The work after the recorded event has not run yet.
  EXPECT_EQ(consume(), 1);
}

TEST_F(StreamsTest, AskingWhetherAnEventHasFinishedComesToAnEnd) {
  Event produced(kDevice);
  for (int i = 0; i < 3; ++i) produce();
  produced.record(producer_);

  EXPECT_FALSE(produced.has_finished());
  while (!produced.has_finished()) {
  }

  EXPECT_EQ(consume(), 3);
}

// The watchdog checks a collective that waits for another rank in the same way.
TEST_F(StreamsTest, WorkThatHasBegunHasNotFinished) {
  Event done(kDevice);
  bool finished_too_early = true;
  simt::enqueue(cuda::native_stream(producer_),
                [&] { std::thread([&] { finished_too_early = done.has_finished(); }).join(); });
  done.record(producer_);

  producer_.synchronize();

  EXPECT_FALSE(finished_too_early);
  EXPECT_TRUE(done.has_finished());
}

TEST_F(StreamsTest, PageableMemoryIsReadBeforeTheCopyReturns) {
  int source = 7;
  copy(producer_, view_of(std::span<const int>(&source, 1)), value_);
  source = 8;
  producer_.synchronize();

  EXPECT_EQ(consume(), 7);
}

TEST_F(StreamsTest, PinnedMemoryIsReadWhenTheCopyRuns) {
  PinnedBuffer source(sizeof(int));
  *static_cast<int*>(source.data()) = 7;
  copy(producer_, ConstTensorView(source.data(), {1}, DType::i32), value_);
  *static_cast<int*>(source.data()) = 8;
  producer_.synchronize();

  EXPECT_EQ(consume(), 8);
}

using SimtDeathTest = SimtTest;

TEST_F(SimtDeathTest, TheHostCannotTouchDeviceMemory) {
  Tensor tensor({4}, DType::i32, Device{DeviceKind::cuda, 0});

  EXPECT_DEATH(tensor.data<int32_t>()[0] = 1, "");
}

}  // namespace
}  // namespace switchyard
