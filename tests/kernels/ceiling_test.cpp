#include "kernels/runtime/ceiling.h"

#include <gtest/gtest.h>

#include "tests/support/test_device.h"

namespace switchyard {
namespace {

// Where a processor cannot multiply bf16, its operands are widened: the ceiling is that of f32.
TEST(CeilingTest, EveryProcessorHasOneForBothDtypes) {
  SWITCHYARD_CPU_ONLY("GPUs are measured by the benchmarks");
  Stream stream;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    EXPECT_GT(measure_product_ceiling(stream, dtype), 1e8) << to_string(dtype);
  }
}

}  // namespace
}  // namespace switchyard
