#include "trainer/hashing/quality.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "trainer/hashing/random_projection.h"

namespace switchyard {
namespace {

// Keys in a plane, key i at the angle i * step, and a query along the first axis.
HeadQueryKeys fan(int64_t keys, double step) {
  HeadQueryKeys head{.q = Tensor({1, 1, 2}, DType::f32),
                     .k = Tensor({1, keys, 2}, DType::f32),
                     .row_offsets = {0, keys}};
  head.q.data<float>()[0] = 10.0f;
  for (int64_t i = 0; i < keys; ++i) {
    const double angle = step * static_cast<double>(i);
    head.k.data<float>()[2 * i] = static_cast<float>(std::cos(angle));
    head.k.data<float>()[2 * i + 1] = static_cast<float>(std::sin(angle));
  }
  return head;
}

TEST(QualityTest, CodesThatKnowTheAngleFindEveryKey) {
  // 4,096 directions that divide the circle evenly.
  Tensor weight({2, 4096}, DType::f32);
  for (int64_t b = 0; b < 4096; ++b) {
    const double angle = 6.283185307179586 * (static_cast<double>(b) + 0.5) / 4096.0;
    weight.data<float>()[b] = static_cast<float>(std::cos(angle));
    weight.data<float>()[4096 + b] = static_cast<float>(std::sin(angle));
  }
  HashQuality quality;

  add_quality(weight, fan(100, 0.03), quality);

  EXPECT_EQ(quality.queries, 1);
  for (size_t b = 0; b < kBudgets.size(); ++b) {
    EXPECT_EQ(quality.recall[b], 1.0);
    EXPECT_DOUBLE_EQ(quality.attention_mass[b], quality.best_mass[b]);
  }
}

// All codes are equal, so the most recent keys are selected; here they are the worst.
TEST(QualityTest, TiesGoToTheMostRecentKeys) {
  Tensor weight({2, 32}, DType::f32);  // zero: every bit is 0
  HashQuality quality;

  add_quality(weight, fan(100, 0.03), quality);

  EXPECT_EQ(quality.recall[2], 0.0);
  EXPECT_LT(quality.attention_mass[2], 1e-3);
  EXPECT_GT(quality.best_mass[2], 0.1);
}

TEST(QualityTest, IsTheMeanOverQueries) {
  const Tensor weight = random_projection(HashInit::orthogonal, {1, 2}, 2, 32);
  HashQuality one, other, both;
  add_quality(weight, fan(100, 0.03), one);
  add_quality(weight, fan(37, 0.08), other);

  add_quality(weight, fan(100, 0.03), both);
  add_quality(weight, fan(37, 0.08), both);

  EXPECT_EQ(both.queries, 2);
  EXPECT_NEAR(both.recall[2], 0.5 * (one.recall[2] + other.recall[2]), 1e-12);
  EXPECT_NEAR(both.attention_mass[1], 0.5 * (one.attention_mass[1] + other.attention_mass[1]),
              1e-12);
}

// The two query heads of a group have different directions in each of two sequences.
TEST(QualityTest, SequencesOfAHeadAreMeasuredApart) {
  const Tensor weight = random_projection(HashInit::orthogonal, {1, 2}, 2, 32);
  HeadQueryKeys both{.q = Tensor({2, 2, 2}, DType::f32),
                     .k = Tensor({1, 137, 2}, DType::f32),
                     .row_offsets = {0, 100, 137}};
  const float directions[2][2][2] = {{{10, 1}, {-3, 8}}, {{9, 2}, {1, 7}}};  // [group][sequence]
  HashQuality apart, together;
  for (int64_t s = 0; s < 2; ++s) {
    HeadQueryKeys one = s == 0 ? fan(100, 2.0) : fan(37, 1.3);
    one.q = Tensor({2, 1, 2}, DType::f32);
    for (int64_t g = 0; g < 2; ++g) {
      std::copy_n(directions[g][s], 2, one.q.data<float>() + 2 * g);
      std::copy_n(directions[g][s], 2, both.q.data<float>() + 2 * (2 * g + s));
    }
    std::copy_n(one.k.data<float>(), one.k.num_elements(), both.k.data<float>() + 200 * s);
    add_quality(weight, one, apart);
  }

  add_quality(weight, both, together);

  EXPECT_EQ(together.queries, 2);
  for (size_t b = 0; b < kBudgets.size(); ++b) {
    EXPECT_NEAR(together.recall[b], apart.recall[b], 1e-12);
    EXPECT_NEAR(together.attention_mass[b], apart.attention_mass[b], 1e-12);
  }
}

TEST(QualityTest, OneKeyIsAlwaysFound) {
  HashQuality quality;

  add_quality(random_projection(HashInit::orthogonal, {1, 2}, 2, 32), fan(1, 0.03), quality);

  EXPECT_EQ(quality.recall[0], 1.0);
  EXPECT_EQ(quality.attention_mass[0], 1.0);
}

}  // namespace
}  // namespace switchyard
