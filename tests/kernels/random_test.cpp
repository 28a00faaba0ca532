#include "kernels/basic/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <set>

#include "kernels/inline/philox_normal.h"
#include "kernels/runtime/check.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::Stream;
using test::Tensor;

TEST(RandomTest, ABoxHoldsTheValuesOfTheWholeAtItsPlace) {
  Stream stream;
  const Shape whole_shape{4, 6, 10};
  Tensor whole(whole_shape, DType::f32), box({2, 3, 4}, DType::f32);
  const RandomKey key{7, stream_id("experts")};

  init_normal(stream, key, 0.5f, whole_shape, {0, 0, 0}, whole);
  init_normal(stream, key, 0.5f, whole_shape, {1, 2, 5}, box);

  for (int64_t a = 0; a < 2; ++a) {
    for (int64_t b = 0; b < 3; ++b) {
      for (int64_t c = 0; c < 4; ++c) {
        EXPECT_EQ(box.data<float>()[(a * 3 + b) * 4 + c],
                  whole.data<float>()[((a + 1) * 6 + b + 2) * 10 + c + 5]);
      }
    }
  }
}

TEST(RandomTest, NormalValuesHaveTheirMomentsAndNoNeighboursInCommon) {
  Stream stream;
  constexpr int64_t kCount = 200001;
  Tensor values({kCount}, DType::f32), others({kCount}, DType::f32);
  init_normal(stream, {1, stream_id("a")}, 2.0f, {kCount}, {0}, values);
  init_normal(stream, {1, stream_id("b")}, 2.0f, {kCount}, {0}, others);

  double sum = 0.0, squares = 0.0, fourth = 0.0, neighbours = 0.0, across = 0.0;
  for (int64_t i = 0; i < kCount; ++i) {
    const double v = values.data<float>()[i] / 2.0;
    sum += v;
    squares += v * v;
    fourth += v * v * v * v;
    if (i > 0) neighbours += v * values.data<float>()[i - 1] / 2.0;
    across += v * others.data<float>()[i] / 2.0;
  }

  EXPECT_NEAR(sum / kCount, 0.0, 0.01);
  EXPECT_NEAR(squares / kCount, 1.0, 0.015);
  EXPECT_NEAR(fourth / kCount, 3.0, 0.1);
  EXPECT_NEAR(neighbours / kCount, 0.0, 0.01);
  EXPECT_NEAR(across / kCount, 0.0, 0.01);
}

TEST(RandomTest, UniformNumbersLieInsideTheUnitIntervalAndDiffer) {
  std::set<double> seen;
  for (uint64_t i = 0; i < 1000; ++i) {
    const double u = random_uniform({3, 4}, i);
    EXPECT_GT(u, 0.0);
    EXPECT_LT(u, 1.0);
    seen.insert(u);
  }
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_NE(random_bits({3, 4}, 0), random_bits({4, 4}, 0));
}

TEST(RandomTest, RefusesABoxThatLeavesTheTensor) {
  Stream stream;
  Tensor box({2, 2}, DType::f32);
  EXPECT_THROW(init_normal(stream, {}, 1.0f, {3, 3}, {2, 0}, box), Error);
}

TEST(RandomTest, LogAndCosAreThoseOfTheLibrary) {
  for (uint32_t i = 0; i < 200000; ++i) {
    const double u = open_unit(i * 21479u);
    ASSERT_NEAR(portable_log(u), std::log(u), 4e-16 * std::abs(std::log(u)) + 1e-18) << u;
    const double angle = 2.0 * std::numbers::pi * u;
    ASSERT_NEAR(portable_cos_turns(u, false), std::cos(angle), 2e-15) << u;
    ASSERT_NEAR(portable_cos_turns(u, true), std::sin(angle), 2e-15) << u;
  }
  EXPECT_NEAR(portable_log(open_unit(0xffffffffu)), std::log(open_unit(0xffffffffu)), 1e-25);
}

}  // namespace
}  // namespace switchyard
