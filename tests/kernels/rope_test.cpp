// The split of the fused projection and the rotation on the device of the tests against the CPU's
// bodies, at widths that allow 16-byte accesses and widths that do not.
#include "kernels/attention/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "kernels/runtime/check.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;

void expect_near(const std::vector<double>& values, const std::vector<double>& expected) {
  ASSERT_EQ(values.size(), expected.size());
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_NEAR(values[i], expected[i], 1e-8 * expected[i]) << i;
  }
}

// The figures of these tests come from the published formulas, evaluated by another program.
TEST(RopeFrequencies, ArePowersOfTheBase) {
  expect_near(rope_frequencies({.head_dim = 8, .theta = 10000.0}), {1.0, 0.1, 0.01, 0.001});
  expect_near(rope_frequencies({.head_dim = 8, .rotary_dim = 4, .theta = 10000.0}), {1.0, 0.01});
}

TEST(RopeFrequencies, LinearScalingDividesAll) {
  expect_near(rope_frequencies({.head_dim = 4,
                                .theta = 100.0,
                                .scaling = {.type = RopeScalingType::linear, .factor = 4.0}}),
              {0.25, 0.025});
}

TEST(RopeFrequencies, Llama3ScalingStretchesTheSlowPairs) {
  expect_near(
      rope_frequencies(
          {.head_dim = 16,
           .theta = 500000.0,
           .scaling = {.type = RopeScalingType::llama3, .factor = 8.0, .original_seq_len = 8192}}),
      {1.0, 0.193922745, 0.0376060309, 0.00729266474, 0.000524846161, 3.4281022e-05, 6.64786987e-06,
       1.28917317e-06});
}

TEST(RopeFrequencies, YarnStretchesByThePairsNumber) {
  const RopeScaling scaling{.type = RopeScalingType::yarn, .factor = 4.0, .original_seq_len = 4096};
  expect_near(
      rope_frequencies({.head_dim = 16, .theta = 10000.0, .scaling = scaling}),
      {1.0, 0.316227766, 0.1, 0.025693506, 0.00625, 0.00138349648, 0.00025, 7.90569415e-05});
  EXPECT_NEAR(rope_attention_factor(scaling), 1.138629436111989, 1e-15);
  EXPECT_EQ(rope_attention_factor({.type = RopeScalingType::llama3, .factor = 4.0}), 1.0);
}

TEST(RopeTable, HoldsTheAnglesOfThePairsThatTurnTimesTheAttentionFactor) {
  switchyard::Stream stream;
  const RopeTable table = make_rope_table(
      stream, 3,
      {.head_dim = 4,
       .rotary_dim = 2,
       .scaling = {
           .type = RopeScalingType::yarn, .original_seq_len = 100, .attention_factor = 1.5}});

  ASSERT_EQ(table.cos.shape(), (Shape{3, 1}));
  ASSERT_EQ(table.sin.shape(), (Shape{3, 1}));
  for (int t = 0; t < 3; ++t) {
    EXPECT_FLOAT_EQ(table.cos.data<float>()[t], 1.5f * std::cos(static_cast<float>(t)));
    EXPECT_FLOAT_EQ(table.sin.data<float>()[t], 1.5f * std::sin(static_cast<float>(t)));
  }
}

TEST(RopeFrequencies, RefusePairsThatAreNone) {
  EXPECT_THROW(rope_frequencies({.head_dim = 7}), Error);
  EXPECT_THROW(rope_frequencies({.head_dim = 8, .rotary_dim = 3}), Error);
  EXPECT_THROW(rope_frequencies({.head_dim = 8, .rotary_dim = 10}), Error);
}

enum class Turning { none, half, all };  // which share of a head's channels turns

// head_dim, dtype, turning.
class RopeAgreementTest : public testing::TestWithParam<std::tuple<int64_t, DType, Turning>> {
 protected:
  static constexpr int64_t kBatch = 2, kHeads = 4, kKvHeads = 2, kSeqLen = 7, kFirst = 3;

  int64_t head_dim() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  Tensor heads(int64_t count, uint64_t seed) const {
    return random_tensor({kBatch, count, kSeqLen, head_dim()}, seed, dtype());
  }
  Tensor fused(uint64_t seed) const {
    return random_tensor({kBatch * kSeqLen, (kHeads + 2 * kKvHeads) * head_dim()}, seed, dtype());
  }
  // Results may differ by two roundings where one body uses fused multiply-adds.
  void expect_close(const Tensor& a, const Tensor& b) const {
    EXPECT_LT(test::relative_error(to_floats(a), to_floats(b)),
              dtype() == DType::f32 ? 1e-6 : 1e-2);
  }

  Stream stream_;
  switchyard::Stream cpu_;
  Tensor cos_ = table(21), sin_ = table(22);
  Turning turning() const { return std::get<2>(GetParam()); }
  ConstTensorView cos() const { return turning() == Turning::none ? ConstTensorView() : cos_; }
  ConstTensorView sin() const { return turning() == Turning::none ? ConstTensorView() : sin_; }

 private:
  Tensor table(uint64_t seed) const {
    const int64_t pairs = turning() == Turning::half ? (head_dim() + 2) / 4 : head_dim() / 2;
    return random_tensor({kSeqLen + kFirst, pairs}, seed, DType::f32, 0.5f);
  }
};

TEST_P(RopeAgreementTest, Splits) {
  const Tensor qkv = fused(1);
  Tensor q = heads(kHeads, 2), k = heads(kKvHeads, 3), v = heads(kKvHeads, 4);
  Tensor cpu_q = heads(kHeads, 5), cpu_k = heads(kKvHeads, 6), cpu_v = heads(kKvHeads, 7);

  split_qkv_forward(stream_, qkv, cos(), sin(), kFirst, q, k, v);
  cpu::split_qkv_forward(cpu_, qkv, cos(), sin(), kFirst, cpu_q, cpu_k, cpu_v);

  expect_close(q, cpu_q);
  expect_close(k, cpu_k);
  EXPECT_EQ(to_floats(v), to_floats(cpu_v));
}

TEST_P(RopeAgreementTest, Joins) {
  const Tensor dq = heads(kHeads, 1), dk = heads(kKvHeads, 2), dv = heads(kKvHeads, 3);
  Tensor dqkv = fused(4), cpu_dqkv = fused(5);

  split_qkv_backward(stream_, dq, dk, dv, cos(), sin(), dqkv);
  cpu::split_qkv_backward(cpu_, dq, dk, dv, cos(), sin(), cpu_dqkv);

  expect_close(dqkv, cpu_dqkv);
}

class RotationAgreementTest : public RopeAgreementTest {};

TEST_P(RotationAgreementTest, RotatesInPlace) {
  for (const bool inverse : {false, true}) {
    Tensor x = heads(kHeads, 1), cpu_x = heads(kHeads, 1);

    rope_in_place(stream_, cos_, sin_, kFirst, inverse, x);
    cpu::rope_in_place(cpu_, cos_, sin_, kFirst, inverse, cpu_x);

    expect_close(x, cpu_x);
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, RopeAgreementTest,
                         testing::Combine(testing::Values(2, 6, 16, 40, 64, 128),
                                          testing::Values(DType::f32, DType::bf16),
                                          testing::Values(Turning::none, Turning::half,
                                                          Turning::all)));
INSTANTIATE_TEST_SUITE_P(Widths, RotationAgreementTest,
                         testing::Combine(testing::Values(2, 6, 16, 40, 64, 128),
                                          testing::Values(DType::f32, DType::bf16),
                                          testing::Values(Turning::half, Turning::all)));
// Without a rotation a head may have any width.
INSTANTIATE_TEST_SUITE_P(OddWidths, RopeAgreementTest,
                         testing::Combine(testing::Values(1, 33),
                                          testing::Values(DType::f32, DType::bf16),
                                          testing::Values(Turning::none)));

}  // namespace
}  // namespace switchyard
