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
                     .visible = {{0, keys}}};
  head.q.data<float>()[0] = 10.0f;
  for (int64_t i = 0; i < keys; ++i) {
    const double angle = step * static_cast<double>(i);
    head.k.data<float>()[2 * i] = static_cast<float>(std::cos(angle));
    head.k.data<float>()[2 * i + 1] = static_cast<float>(std::sin(angle));
  }
  return head;
}

// Measures the signs of one projection.
//   weight  [head_dim, bits]
void add_signs(const Tensor& weight, const HeadQueryKeys& head, HashQuality& result) {
  const HashProjection hash{
      .keys = weight.view().reshape({1, weight.shape()[0], weight.shape()[1]}),
      .queries = {},
      .thresholds = {}};
  add_quality({&hash, 1}, head, {&result, 1});
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

  add_signs(weight, fan(100, 0.03), quality);

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

  add_signs(weight, fan(100, 0.03), quality);

  EXPECT_EQ(quality.recall[2], 0.0);
  EXPECT_LT(quality.attention_mass[2], 1e-3);
  EXPECT_GT(quality.best_mass[2], 0.1);
}

TEST(QualityTest, IsTheMeanOverQueries) {
  const Tensor weight = random_projection(HashInit::orthogonal, {1, 2}, 2, 32);
  HashQuality one, other, both;
  add_signs(weight, fan(100, 0.03), one);
  add_signs(weight, fan(37, 0.08), other);

  add_signs(weight, fan(100, 0.03), both);
  add_signs(weight, fan(37, 0.08), both);

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
                     .visible = {{0, 100}, {100, 137}}};
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
    add_signs(weight, one, apart);
  }

  add_signs(weight, both, together);

  EXPECT_EQ(together.queries, 2);
  for (size_t b = 0; b < kBudgets.size(); ++b) {
    EXPECT_NEAR(together.recall[b], apart.recall[b], 1e-12);
    EXPECT_NEAR(together.attention_mass[b], apart.attention_mass[b], 1e-12);
  }
}

// Keys on a line away from the origin: all of them have the same signs.
TEST(QualityTest, ThresholdsAndLengthsFindWhatSignsCannot) {
  HeadQueryKeys head{.q = Tensor({1, 1, 2}, DType::f32),
                     .k = Tensor({1, 64, 2}, DType::f32),
                     .visible = {{0, 64}}};
  head.q.data<float>()[1] = 1.0f;
  for (int64_t i = 0; i < 64; ++i) {
    head.k.data<float>()[2 * i] = 50.0f;
    head.k.data<float>()[2 * i + 1] = 40.0f - 0.5f * static_cast<float>(i);  // the first is best
  }
  Tensor weight({1, 2, 32}, DType::f32), thresholds({1, 32}, DType::f32);
  for (int64_t j = 0; j < 32; ++j) {
    weight.data<float>()[32 + j] = 1.0f;
    thresholds.data<float>()[j] = 24.0f;
  }
  const HashProjection hashes[] = {{.keys = weight, .queries = {}, .thresholds = {}},
                                   {.keys = weight, .queries = weight, .thresholds = thresholds}};
  HashQuality qualities[2];

  add_quality(hashes, head, qualities);

  EXPECT_EQ(qualities[0].recall[2], 0.0);
  EXPECT_EQ(qualities[1].recall[2], 1.0);
  EXPECT_EQ(qualities[1].attention_mass[2], qualities[1].best_mass[2]);
}

// Queries of one sequence see other parts of its keys.
TEST(QualityTest, EveryQueryIsMeasuredOnTheKeysThatItSees) {
  const Tensor weight = random_projection(HashInit::orthogonal, {1, 2}, 2, 32);
  HeadQueryKeys both = fan(100, 0.03);
  both.q = Tensor({1, 2, 2}, DType::f32);
  both.q.data<float>()[0] = both.q.data<float>()[2] = 10.0f;
  both.visible = {{0, 60}, {40, 100}};
  HashQuality together, apart;

  add_signs(weight, both, together);

  for (const int64_t first : {0, 40}) {
    HeadQueryKeys one = fan(60, 0.03);
    std::copy_n(both.k.data<float>() + 2 * first, 120, one.k.data<float>());
    add_signs(weight, one, apart);
  }
  for (size_t b = 0; b < kBudgets.size(); ++b) {
    EXPECT_NEAR(together.recall[b], apart.recall[b], 1e-12);
    EXPECT_NEAR(together.best_mass[b], apart.best_mass[b], 1e-12);
  }
}

TEST(QualityTest, OneKeyIsAlwaysFound) {
  HashQuality quality;

  add_signs(random_projection(HashInit::orthogonal, {1, 2}, 2, 32), fan(1, 0.03), quality);

  EXPECT_EQ(quality.recall[0], 1.0);
  EXPECT_EQ(quality.attention_mass[0], 1.0);
}

}  // namespace
}  // namespace switchyard
