#include "kernels/inline/vector_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/basic/soft_sign.h"
#include "kernels/basic/softmax.h"

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

TEST(HostMath, SoftSignTendsToTheSign) {
  std::vector<float> x = {-40.0f, -1.0f, -0.01f, 0.0f, 0.3f, 2.0f, 500.0f};
  const std::vector<float> before = x;
  soft_sign(1.5f, x);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(x[i], std::tanh(0.75 * before[i]), 4e-7) << before[i];
  }
}

TEST(HostMath, SoftmaxIsThatOfDoublesWhateverTheSizeOfItsValues) {
  for (const float offset : {0.0f, 300.0f, -300.0f}) {
    std::vector<float> x(1000);
    for (size_t i = 0; i < x.size(); ++i) x[i] = offset + static_cast<float>(i % 37) * 0.5f;
    double sum = 0.0;
    for (const float value : x) sum += std::exp(0.8 * (double{value} - offset));
    std::vector<float> result = x;

    const double log_sum = softmax(0.8f, result);

    EXPECT_NEAR(log_sum, 0.8 * offset + std::log(sum), 1e-4);
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = std::exp(0.8 * (double{x[i]} - offset)) / sum;
      ASSERT_NEAR(result[i], expected, 3e-5 * expected) << i;
    }
  }
}

}  // namespace
}  // namespace switchyard
