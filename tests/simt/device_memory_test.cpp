// A device that runs out of memory. A test can choose that on an emulated device only.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"
#include "tests/support/test_device.h"

namespace switchyard {
namespace {

constexpr size_t kMebibyte = size_t{1} << 20;

class DeviceMemoryTest : public testing::Test {
 protected:
  static constexpr Device kDevice{DeviceKind::cuda, 0};

  void TearDown() override { unsetenv("SWITCHYARD_EMULATED_DEVICE_BYTES"); }

  // Changes the size of the device so that `num_bytes` are free.
  void leave_free(size_t num_bytes) {
    const MemoryFigures memory = memory_of(kDevice);
    const size_t used = memory.total_bytes - memory.free_bytes;
    setenv("SWITCHYARD_EMULATED_DEVICE_BYTES", std::to_string(used + num_bytes).c_str(), 1);
  }

 private:
  const test::DeviceOnlyMemory memory_;
};

TEST_F(DeviceMemoryTest, WhatIsGivenBackIsFreeAgain) {
  leave_free(2 * kMebibyte);
  {
    const Buffer most(2 * kMebibyte - 4096, kDevice);
    EXPECT_THROW(Buffer(kMebibyte, kDevice), OutOfMemory);
  }
  EXPECT_NO_THROW(Buffer(kMebibyte, kDevice));
}

TEST_F(DeviceMemoryTest, TheErrorTellsWhatWasFree) {
  leave_free(3 * kMebibyte);
  try {
    const Buffer too_large(4 * kMebibyte, kDevice);
    FAIL() << "4 MiB were allocated where 3 MiB were free";
  } catch (const OutOfMemory& error) {
    EXPECT_EQ(error.memory().free_bytes, 3 * kMebibyte);
  }
}

// A workspace asks for a quarter more than it holds, so that it grows seldom.
TEST_F(DeviceMemoryTest, AWorkspaceTakesOnlyWhatItNeedsWhenMemoryIsShort) {
  Workspace workspace(kDevice);
  workspace.take({static_cast<int64_t>(16 * kMebibyte)}, DType::u8);
  leave_free(2 * kMebibyte);

  EXPECT_NO_THROW(workspace.take({static_cast<int64_t>(2 * kMebibyte)}, DType::u8));
  EXPECT_THROW(workspace.take({1}, DType::u8), OutOfMemory);
}

}  // namespace
}  // namespace switchyard
