#include "kernels/inline/vector_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

namespace switchyard {
namespace {

TEST(FastExpTest, IsWithinTwoUnitsInTheLastPlace) {
  double worst = 0.0;

  for (float x = -87.0f; x <= 88.0f; x += 1.37e-3f) {
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(fast_exp(x) - exact) / exact);
  }

  EXPECT_LT(worst, 2 * 0x1p-23);
}

TEST(FastExpTest, EndsOfTheRange) {
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-1e30f), 0.0f);
  EXPECT_EQ(fast_exp(-INFINITY), 0.0f);
  EXPECT_EQ(fast_exp(89.0f), INFINITY);
  EXPECT_EQ(fast_exp(INFINITY), INFINITY);
  EXPECT_TRUE(std::isnan(fast_exp(NAN)));
  EXPECT_TRUE(std::isnan(fast_exp(std::bit_cast<float>(0xffffffffu))));
}

}  // namespace
}  // namespace switchyard
