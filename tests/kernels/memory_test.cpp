#include "kernels/runtime/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/runtime/tensor.h"
#include "tests/support/error_of.h"
#include "tests/support/test_device.h"

namespace switchyard {
namespace {

using test::error_of;
using testing::AllOf;
using testing::HasSubstr;

// Elements of four bytes: 4 PiB, more than an address space holds.
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
    FAIL() << "4 PiB were given out";
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

}  // namespace
}  // namespace switchyard
