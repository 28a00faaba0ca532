// How many bytes of the rows the permutation reads. The rows themselves are in permute_test.cpp.
#include <gtest/gtest.h>

#include "kernels/moe/permute.h"
#include "tests/simt/simt.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;

TEST(RowReads, SpreadingReadsEachRowOnceHoweverManyCopiesItGets) {
  constexpr int64_t kTokens = 40, kTopK = 8;
  std::vector<int32_t> members;
  for (int32_t i = 0; i < kTokens * kTopK; ++i) members.push_back(i * 7 % (kTokens * kTopK));
  test::Stream stream;
  for (const int64_t width : {33, 64, 1032}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Tensor x = random_tensor({kTokens, width}, 1, dtype);
      test::Tensor y({kTokens * kTopK, width}, dtype);
      const size_t before = simt::streamed_bytes();

      spread_rows(stream, x, {}, make_tensor<int32_t>({kTokens * kTopK}, members), 0, y);
      stream.synchronize();

      EXPECT_EQ(simt::streamed_bytes() - before, x.view().num_bytes()) << width;
    }
  }
}

}  // namespace
}  // namespace switchyard
