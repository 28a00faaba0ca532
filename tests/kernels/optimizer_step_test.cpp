// One update against double references; ranges begin at any element.
#include "kernels/optimizer/optimizer_step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;

class OptimizerStepTest : public testing::TestWithParam<std::tuple<int64_t, int64_t, bool>> {
 protected:
  int64_t n() const { return std::get<0>(GetParam()); }
  bool rounds() const { return std::get<2>(GetParam()); }
  TensorView part(Tensor& tensor) const { return tensor.view().rows(std::get<1>(GetParam()), n()); }
  Tensor random(uint64_t seed) const { return random_tensor({n() + 5}, seed); }
  Tensor positive(uint64_t seed) const {
    Tensor tensor = random(seed);
    for (int64_t i = 0; i < tensor.num_elements(); ++i) {
      tensor.data<float>()[i] = std::abs(tensor.data<float>()[i]);
    }
    return tensor;
  }
  void expect_rounded(Tensor& params, Tensor& rounded) const {
    if (!rounds()) return;
    const auto exact = to_floats(part(params)), seen = to_floats(part(rounded));
    for (size_t i = 0; i < exact.size(); ++i) {
      ASSERT_EQ(seen[i], static_cast<float>(bfloat16(exact[i])));
    }
  }

  Stream stream_;
};

TEST_P(OptimizerStepTest, AdamWFollowsItsEquations) {
  const AdamWOptions o{
      .lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-3f, .weight_decay = 0.1f, .step = 3};
  constexpr float kGradScale = 0.5f;
  Tensor grad = random(1), params = random(2), m = random(3), v = positive(4);
  Tensor rounded({n() + 5}, DType::bf16);
  const auto g0 = to_floats(part(grad)), p0 = to_floats(part(params)), m0 = to_floats(part(m)),
             v0 = to_floats(part(v));

  adamw_step(stream_, o, kGradScale, part(grad), part(params), part(m), part(v),
             rounds() ? part(rounded) : TensorView());

  const auto p1 = to_floats(part(params)), m1 = to_floats(part(m)), v1 = to_floats(part(v));
  for (size_t i = 0; i < p1.size(); ++i) {
    const double g = g0[i] * kGradScale;
    const double exp_avg = 0.9 * m0[i] + 0.1 * g, exp_avg_sq = 0.95 * v0[i] + 0.05 * g * g;
    const double update = exp_avg / (1.0 - std::pow(0.9, 3)) /
                          (std::sqrt(exp_avg_sq / (1.0 - std::pow(0.95, 3))) + 1e-3);
    ASSERT_NEAR(m1[i], exp_avg, 1e-6);
    ASSERT_NEAR(v1[i], exp_avg_sq, 1e-6);
    ASSERT_NEAR(p1[i], p0[i] * (1.0 - 1e-2 * 0.1) - 1e-2 * update, 1e-6);
  }
  expect_rounded(params, rounded);
}

TEST_P(OptimizerStepTest, SgdFollowsItsEquations) {
  const SgdOptions o{.lr = 0.1f, .momentum = 0.9f, .weight_decay = 0.01f};
  Tensor grad = random(1), params = random(2), m = random(3);
  Tensor rounded({n() + 5}, DType::bf16);
  const auto g0 = to_floats(part(grad)), p0 = to_floats(part(params)), m0 = to_floats(part(m));

  sgd_step(stream_, o, 2.0f, part(grad), part(params), part(m),
           rounds() ? part(rounded) : TensorView());

  const auto p1 = to_floats(part(params)), m1 = to_floats(part(m));
  for (size_t i = 0; i < p1.size(); ++i) {
    const double momentum = 0.9 * m0[i] + (2.0 * g0[i] + 0.01 * p0[i]);
    ASSERT_NEAR(m1[i], momentum, 2e-6);
    ASSERT_NEAR(p1[i], p0[i] - 0.1 * momentum, 2e-6);
  }
  expect_rounded(params, rounded);
}

TEST_P(OptimizerStepTest, MomentumFollowsItsEquations) {
  for (const bool nesterov : {false, true}) {
    const MomentumOptions o{.momentum = 0.95f, .nesterov = nesterov};
    Tensor grad = random(1), direction = random(2), m = random(3);
    const auto g0 = to_floats(part(grad)), m0 = to_floats(part(m)), outside = to_floats(direction);

    momentum_step(stream_, o, 2.0f, part(grad), part(m), part(direction));

    const auto d1 = to_floats(part(direction)), m1 = to_floats(part(m));
    for (size_t i = 0; i < d1.size(); ++i) {
      const double momentum = 0.95 * m0[i] + 2.0 * g0[i];
      ASSERT_NEAR(m1[i], momentum, 2e-6);
      ASSERT_NEAR(d1[i], nesterov ? 2.0 * g0[i] + 0.95 * momentum : momentum, 4e-6);
    }
    EXPECT_EQ(to_floats(direction).back(), outside.back());
  }
}

TEST_P(OptimizerStepTest, NeighboursOfTheRangeStayAsTheyAre) {
  Tensor grad = random(1), params = random(2), m = random(3), v = positive(4);
  const auto before = to_floats(params);

  adamw_step(stream_, {.lr = 1.0f}, 1.0f, part(grad), part(params), part(m), part(v), {});

  const auto after = to_floats(params);
  const int64_t skip = std::get<1>(GetParam());
  for (int64_t i = 0; i < n() + 5; ++i) {
    if (i >= skip && i < skip + n()) continue;
    EXPECT_EQ(after[static_cast<size_t>(i)], before[static_cast<size_t>(i)]);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranges, OptimizerStepTest,
                         testing::Combine(testing::Values(1, 31, 32, 33, 257, 1030),
                                          testing::Values(0, 3, 4), testing::Bool()));

}  // namespace
}  // namespace switchyard
