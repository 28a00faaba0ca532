#include "trainer/files/not_finite.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace switchyard {
namespace {

TEST(NotFinite, NanAndInfinitiesAreCountedApart) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {
      0.0f,      kNan,  -kInfinity, std::numeric_limits<float>::max(),
      kInfinity, -kNan, kInfinity,  1e-45f};

  NotFinite count = count_not_finite(values);

  EXPECT_EQ(count.nan, 2);
  EXPECT_EQ(count.infinite, 3);
  count += count;
  EXPECT_EQ(count.total(), 10);
}

TEST(NotFinite, OnlyWhatWasFoundIsNamed) {
  EXPECT_EQ(describe(NotFinite{.nan = 2, .infinite = 1}), "2 NaN and 1 infinity");
  EXPECT_EQ(describe(NotFinite{.nan = 0, .infinite = 3}), "3 infinities");
  EXPECT_EQ(describe(NotFinite{.nan = 1, .infinite = 0}), "1 NaN");
  EXPECT_EQ(describe(NotFinite{}), "no NaN and no infinities");
}

}  // namespace
}  // namespace switchyard
