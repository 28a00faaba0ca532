#include "layers/lm_head.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(LmHeadTest, ChunksOnCudaAreWholeTilesWhoseLogitsStayWithinABound) {
  constexpr int64_t kBound = int64_t{256} << 20;
  for (const int64_t vocab : {50304, 50257, 128256}) {
    for (const int tp : {1, 2, 8}) {
      const int64_t rows = LmHead::chunk_tokens(DeviceKind::cuda, vocab, tp);
      const int64_t row_bytes = (vocab + tp - 1) / tp * 4;

      EXPECT_EQ(rows % 128, 0);
      EXPECT_LE(rows * row_bytes, kBound);
      EXPECT_GT((rows + 128) * row_bytes, kBound);
    }
  }
}

TEST(LmHeadTest, HugeVocabulariesAndTheCpuTakeChunksOf256) {
  EXPECT_EQ(LmHead::chunk_tokens(DeviceKind::cuda, int64_t{1} << 20, 1), 256);
  EXPECT_EQ(LmHead::chunk_tokens(DeviceKind::cpu, 100, 1), 256);
}

}  // namespace
}  // namespace switchyard
