#include "kernels/runtime/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/moe/permute.h"
#include "kernels/runtime/tensor.h"
#include "kernels/runtime/to_device.h"
#include "tests/support/error_of.h"
#include "tests/support/test_device.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::error_of;
using testing::AllOf;
using testing::HasSubstr;

// Elements of four bytes: 4 PiB, more than an address space.
constexpr int64_t kTooMany = int64_t{1} << 50;

class OutOfMemoryTest : public testing::Test {
 protected:
  const test::DeviceOnlyMemory memory_;
  const std::string device_ = to_string(test::device());
};

TEST_F(OutOfMemoryTest, ATensorThatDoesNotFitIsNamed) {
  const std::string message = error_of(
      [] { const switchyard::Tensor huge({kTooMany}, DType::f32, test::device(), "the weights"); });

  EXPECT_THAT(message, AllOf(HasSubstr("out of memory on " + device_ +
                                       ": 4294967296.0 MiB for the weights, "
                                       "f32 [1125899906842624]; "),
                             HasSubstr(" MiB are free")));
}

TEST_F(OutOfMemoryTest, TheFiguresAreThoseOfTheDevice) {
  try {
    const switchyard::Tensor huge({kTooMany}, DType::f32, test::device());
    FAIL() << "4 PiB were allocated";
  } catch (const OutOfMemory& error) {
    EXPECT_EQ(error.device(), test::device());
    EXPECT_EQ(error.memory().total_bytes, memory_of(test::device()).total_bytes);
    EXPECT_LE(error.memory().free_bytes, error.memory().total_bytes);
  }
}

TEST_F(OutOfMemoryTest, AWorkspaceSaysWhichTensorAndWhatItHoldsAndGoesOn) {
  switchyard::Workspace workspace(test::device());
  workspace.take({3 << 20}, DType::u8);

  const std::string message = error_of([&] {
    workspace.take({1024, kTooMany >> 10}, DType::bf16);
  });
  const TensorView after = workspace.take({1 << 20}, DType::f32);

  EXPECT_THAT(message,
              HasSubstr("for a tensor of the workspace, bf16 [1024, 1099511627776], beside "
                        "3.0 MiB in use; "));
  EXPECT_EQ(workspace.live_bytes(), size_t{7} << 20);
  EXPECT_NE(after.raw(), nullptr);
}

// ---- Host values -------------------------------------------------------------------------------

// Only the workspace holds the values when the op runs. If their memory had been freed, the vectors
// allocated in between would have reused it.
TEST(ToDeviceTest, ValuesLiveUntilTheirMemoryIsGivenBack) {
  test::Stream stream;
  test::Workspace workspace;
  constexpr int64_t kCount = 5000;
  const test::Tensor values = test::random_tensor({kCount}, /*seed=*/1);
  test::Tensor reversed({kCount}, DType::f32);
  std::vector<std::vector<int32_t>> others;

  std::vector<int32_t> order(kCount);
  for (int32_t i = 0; i < kCount; ++i) order[static_cast<size_t>(i)] = kCount - 1 - i;
  const ConstTensorView index = to_device(stream, workspace, std::move(order));
  for (int i = 0; i < 8; ++i) others.emplace_back(kCount, i);
  {
    const WorkspaceScope scope(workspace);
    to_device(stream, workspace, std::vector<int32_t>(kCount, 1));
  }
  gather_values(stream, values, index, reversed);

  std::vector<float> expected = test::to_vector<float>(values);
  std::reverse(expected.begin(), expected.end());
  EXPECT_EQ(test::to_vector<float>(reversed), expected);
}

TEST(WorkspaceTest, KeepsHostMemoryUntilTheMarkBeforeItIsReleased) {
  test::Workspace workspace;
  const auto keep = [&](int value) {
    const auto memory = std::make_shared<const int>(value);
    workspace.keep(memory);
    return std::weak_ptr<const int>(memory);
  };

  const auto first = keep(1);
  const Workspace::Mark mark = workspace.mark();
  const auto second = keep(2);
  workspace.release(mark);

  EXPECT_TRUE(second.expired());
  ASSERT_FALSE(first.expired());
  EXPECT_EQ(*first.lock(), 1);
  workspace.reset();
  EXPECT_TRUE(first.expired());
}

// Pages that are touched for the first time cost time.
TEST(WorkspaceTest, TheNextMicroBatchFindsTheMemoryOfTheLast) {
  SWITCHYARD_CPU_ONLY("a device's memory is merged into one chunk");
  test::Workspace workspace;
  const auto addresses = [&] {
    std::vector<const void*> all;
    for (int64_t i = 1; i <= 40; ++i) {
      all.push_back(workspace.take({i << 10, 64}, DType::f32).raw());
    }
    workspace.reset();
    return all;
  };

  const std::vector<const void*> first = addresses();
  EXPECT_EQ(addresses(), first);
}

TEST(WorkspaceTest, ChunksThatAreTooSmallForTheTensorsAreMerged) {
  test::Workspace workspace;
  constexpr int64_t kMebibyte = 1 << 20;
  for (int64_t size = 1; size <= 64; size *= 2) {
    workspace.take({size * kMebibyte}, DType::u8);
    workspace.reset();
  }

  const auto* first =
      static_cast<const std::byte*>(workspace.take({40 * kMebibyte}, DType::u8).raw());
  const auto* second =
      static_cast<const std::byte*>(workspace.take({40 * kMebibyte}, DType::u8).raw());

  EXPECT_GE(second, first + 40 * kMebibyte);
  EXPECT_LE(second, first + 40 * kMebibyte + 256);  // guard bands in between
}

}  // namespace
}  // namespace switchyard
