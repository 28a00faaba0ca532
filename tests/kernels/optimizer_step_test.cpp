// One update against double references; ranges begin at any element.
#include "kernels/optimizer/optimizer_step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

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

// The state of a parameter after one step of every rule.
struct Stepped {
  Stepped(Stream& stream, const GradScale& scale) {
    const Tensor grad = random_tensor({33}, 1);
    adamw_step(stream, {.lr = 1e-2f, .weight_decay = 0.1f}, scale, grad, params, m, v, rounded);
    sgd_step(stream, {.lr = 0.1f, .momentum = 0.9f}, scale, grad, of_sgd, momentum, {});
    momentum_step(stream, {.momentum = 0.9f}, scale, grad, of_muon, direction);
  }
  std::vector<float> values() const {
    std::vector<float> all;
    for (const Tensor* tensor : {&params, &m, &v, &rounded, &of_sgd, &momentum, &of_muon}) {
      const auto floats = to_floats(*tensor);
      all.insert(all.end(), floats.begin(), floats.end());
    }
    return all;
  }

  Tensor params = random_tensor({33}, 2), m = random_tensor({33}, 3), v = Tensor({33}, DType::f32);
  Tensor rounded = Tensor({33}, DType::bf16);
  Tensor of_sgd = random_tensor({33}, 4), momentum = random_tensor({33}, 5);
  Tensor of_muon = random_tensor({33}, 6), direction = Tensor({33}, DType::f32);
};

TEST(GradScaleTest, ANumberOnTheDeviceIsAFactorOfThatOnTheHost) {
  Stream stream;
  const Tensor quarter = test::make_tensor<float>({1}, {0.25f});

  const Stepped on_device(stream, GradScale(2.0f, quarter)), on_host(stream, 0.5f);

  EXPECT_EQ(on_device.values(), on_host.values());
  EXPECT_EQ(to_floats(on_device.direction), to_floats(on_host.direction));
}

TEST(GradScaleTest, NanChangesNothing) {
  Stream stream;
  const Tensor nan = test::make_tensor<float>({1}, {std::numeric_limits<float>::quiet_NaN()});
  const std::vector<float> still =
      Stepped(stream, std::numeric_limits<float>::quiet_NaN()).values();

  const Stepped skipped(stream, GradScale(1.0f, nan));

  EXPECT_EQ(skipped.values(), still);
  EXPECT_EQ(to_floats(skipped.params), to_floats(random_tensor({33}, 2)));
  EXPECT_EQ(to_floats(skipped.m), to_floats(random_tensor({33}, 3)));
  EXPECT_EQ(to_floats(skipped.of_sgd), to_floats(random_tensor({33}, 4)));
  EXPECT_EQ(to_floats(skipped.of_muon), to_floats(random_tensor({33}, 6)));
}

TEST(ClipScalesTest, ClipOnlyNormsThatAreGreater) {
  Stream stream;
  Tensor norm({1}, DType::f64), scales({2}, DType::f32);
  const auto scales_of = [&](double sum_of_squares, double clip) {
    clip_scales(stream, test::make_tensor<double>({1}, {sum_of_squares}), clip, norm, scales);
    return std::vector<double>{norm.data<double>()[0], scales.data<float>()[0],
                               scales.data<float>()[1]};
  };

  EXPECT_EQ(scales_of(9.0, 1.5), (std::vector<double>{3.0, 0.5, 1.0}));
  EXPECT_EQ(scales_of(9.0, 3.0), (std::vector<double>{3.0, 1.0, 1.0}));
  EXPECT_EQ(scales_of(9.0, 0.0), (std::vector<double>{3.0, 1.0, 1.0}));
  EXPECT_EQ(scales_of(7.0, 1.0)[1], static_cast<float>(1.0 / std::sqrt(7.0)));
}

TEST(ClipScalesTest, ANormThatIsNotFiniteMakesBothNan) {
  Stream stream;
  Tensor norm({1}, DType::f64), scales({2}, DType::f32);
  for (const double sum_of_squares :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    clip_scales(stream, test::make_tensor<double>({1}, {sum_of_squares}), 1.0, norm, scales);

    EXPECT_FALSE(std::isfinite(norm.data<double>()[0]));
    EXPECT_TRUE(std::isnan(scales.data<float>()[0]));
    EXPECT_TRUE(std::isnan(scales.data<float>()[1]));
  }
}

INSTANTIATE_TEST_SUITE_P(Ranges, OptimizerStepTest,
                         testing::Combine(testing::Values(1, 31, 32, 33, 257, 1030),
                                          testing::Values(0, 3, 4), testing::Bool()));

}  // namespace
}  // namespace switchyard
