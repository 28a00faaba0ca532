// The split of the fused projection and the rotation on the device of the tests against the CPU's
// bodies, at widths that allow 16-byte accesses and widths that do not.
#include "kernels/attention/rope.h"

#include <gtest/gtest.h>

#include <tuple>

#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;

// head_dim, dtype, whether there is a rotation.
class RopeAgreementTest : public testing::TestWithParam<std::tuple<int64_t, DType, bool>> {
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
  ConstTensorView cos() const { return std::get<2>(GetParam()) ? cos_.view() : ConstTensorView(); }
  ConstTensorView sin() const { return std::get<2>(GetParam()) ? sin_.view() : ConstTensorView(); }

 private:
  Tensor table(uint64_t seed) const {
    return random_tensor({kSeqLen + kFirst, head_dim() / 2}, seed, DType::f32, 0.5f);
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

// Only heads of an even width are rotated.
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
                                          testing::Bool()));
INSTANTIATE_TEST_SUITE_P(Widths, RotationAgreementTest,
                         testing::Combine(testing::Values(2, 6, 16, 40, 64, 128),
                                          testing::Values(DType::f32, DType::bf16),
                                          testing::Values(true)));
// Without a rotation a head may have any width.
INSTANTIATE_TEST_SUITE_P(OddWidths, RopeAgreementTest,
                         testing::Combine(testing::Values(1, 33),
                                          testing::Values(DType::f32, DType::bf16),
                                          testing::Values(false)));

}  // namespace
}  // namespace switchyard
