// The exchange between the lanes that tensor cores fill and 16-byte pieces of rows; CUTLASS's
// epilogues use it on a GPU.
#include "kernels/cuda/quad_rows.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/runtime/device.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

// out [8, 32] = the columns of each row that the lanes hold after the exchange, in their order;
// back [32 lanes, 4] = their words after a second one.
__global__ void exchange_kernel(uint16_t* out, uint32_t* back) {
  const uint32_t lane = threadIdx.x, row = lane / 4, quarter = lane % 4;
  uint32_t words[4];
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t first = 32 * row + 8 * i + 2 * quarter;  // the element's number
    words[i] = first | (first + 1) << 16;
  }
  exchange_in_quad(words);
  for (uint32_t i = 0; i < 8; ++i) {
    out[32 * row + 8 * quarter + i] = static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2));
  }
  exchange_in_quad(words);
  for (uint32_t i = 0; i < 4; ++i) back[4 * lane + i] = words[i];
}

TEST(QuadRowsTest, ALaneGetsNeighbouringColumnsAndGivesThemBack) {
  std::vector<uint16_t> out(256);
  std::vector<uint32_t> back(128);
  Stream stream{Device{DeviceKind::cuda, 0}};

  launch(exchange_kernel, 1, 32, 0, stream, out.data(), back.data());
  stream.synchronize();

  for (uint32_t i = 0; i < 256; ++i) EXPECT_EQ(out[i], i);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t i = 0; i < 4; ++i) {
      EXPECT_EQ(back[4 * lane + i] & 0xffff, lane / 4 * 32 + 8 * i + lane % 4 * 2);
    }
  }
}

}  // namespace
}  // namespace switchyard
