// Both norms on the device of the tests against the CPU's bodies: rows that take a part of a warp,
// one warp or several; widths that forbid 16-byte accesses; more rows than blocks run at a time.
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "kernels/norm/layer_norm.h"
#include "kernels/norm/rms_norm.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;
using test::Workspace;

// Rows, width, dtype.
class NormAgreementTest : public testing::TestWithParam<std::tuple<int64_t, int64_t, DType>> {
 protected:
  NormAgreementTest() = default;
  static int64_t rows() { return std::get<0>(GetParam()); }
  static int64_t width() { return std::get<1>(GetParam()); }
  static DType dtype() { return std::get<2>(GetParam()); }
  static Tensor matrix(uint64_t seed) { return random_tensor({rows(), width()}, seed, dtype()); }

  // The order of summation differs, and bf16 may round to a neighbouring value.
  static void expect_close(const Tensor& a, const Tensor& b, double f32_bound = 3e-6) {
    EXPECT_LT(test::relative_error(to_floats(a), to_floats(b)),
              a.dtype() == DType::f32 && dtype() == DType::f32 ? f32_bound : 1e-2);
  }

  Stream stream_;
  Workspace workspace_;
  switchyard::Stream cpu_;
  switchyard::Workspace cpu_workspace_;
  const Tensor weight_ = random_tensor({width()}, 91), bias_ = random_tensor({width()}, 92);
  const Tensor x_ = matrix(1), dy_ = matrix(3);
  Tensor mean_{{rows()}, DType::f32}, rstd_{{rows()}, DType::f32};
  Tensor cpu_mean_{{rows()}, DType::f32}, cpu_rstd_{{rows()}, DType::f32};
};

TEST_P(NormAgreementTest, RmsNormForward) {
  for (const bool adds : {false, true}) {
    const Tensor delta = adds ? matrix(2) : Tensor();
    Tensor sum = matrix(4), y = matrix(5), cpu_sum = matrix(4), cpu_y = matrix(6);
    const ConstTensorView d = adds ? delta.view() : ConstTensorView();

    rms_norm_forward(stream_, x_, d, weight_, 1e-5f, sum, y, rstd_);
    cpu::rms_norm_forward(cpu_, x_, d, weight_, 1e-5f, cpu_sum, cpu_y, cpu_rstd_);

    EXPECT_EQ(to_floats(sum), to_floats(cpu_sum));
    expect_close(y, cpu_y);
    expect_close(rstd_, cpu_rstd_);
  }
}

TEST_P(NormAgreementTest, RmsNormBackward) {
  Tensor dx = matrix(7), cpu_dx = matrix(7);
  Tensor dweight = random_tensor({width()}, 8), cpu_dweight = random_tensor({width()}, 8);
  cpu::rms_norm_forward(cpu_, x_, {}, weight_, 1e-5f, {}, matrix(5), rstd_);

  rms_norm_backward(stream_, workspace_, dy_, x_, weight_, rstd_, dx, dweight);
  cpu::rms_norm_backward(cpu_, cpu_workspace_, dy_, x_, weight_, rstd_, cpu_dx, cpu_dweight);

  expect_close(dx, cpu_dx);
  expect_close(dweight, cpu_dweight);
}

TEST_P(NormAgreementTest, LayerNormForward) {
  for (const bool adds : {false, true}) {
    const Tensor delta = adds ? matrix(2) : Tensor();
    Tensor sum = matrix(4), y = matrix(5), cpu_sum = matrix(4), cpu_y = matrix(6);
    const ConstTensorView d = adds ? delta.view() : ConstTensorView();

    layer_norm_forward(stream_, x_, d, weight_, bias_, 1e-2f, sum, y, mean_, rstd_);
    cpu::layer_norm_forward(cpu_, x_, d, weight_, bias_, 1e-2f, cpu_sum, cpu_y, cpu_mean_,
                            cpu_rstd_);

    EXPECT_EQ(to_floats(sum), to_floats(cpu_sum));
    expect_close(y, cpu_y, 1e-5);
    expect_close(mean_, cpu_mean_, 1e-5);
    expect_close(rstd_, cpu_rstd_);
  }
}

TEST_P(NormAgreementTest, LayerNormBackward) {
  Tensor dx = matrix(7), cpu_dx = matrix(7);
  Tensor dweight = random_tensor({width()}, 8), cpu_dweight = random_tensor({width()}, 8);
  Tensor dbias = random_tensor({width()}, 9), cpu_dbias = random_tensor({width()}, 9);
  cpu::layer_norm_forward(cpu_, x_, {}, weight_, bias_, 1e-2f, {}, matrix(5), mean_, rstd_);

  layer_norm_backward(stream_, workspace_, dy_, x_, weight_, mean_, rstd_, dx, dweight, dbias);
  cpu::layer_norm_backward(cpu_, cpu_workspace_, dy_, x_, weight_, mean_, rstd_, cpu_dx,
                           cpu_dweight, cpu_dbias);

  expect_close(dx, cpu_dx, 1e-5);
  expect_close(dweight, cpu_dweight);
  expect_close(dbias, cpu_dbias);
}

TEST_P(NormAgreementTest, TheSumMayTakeThePlaceOfXOrDelta) {
  const Tensor delta = matrix(2);
  Tensor sum = matrix(4), y = matrix(5), over_x = matrix(1), over_delta = matrix(2);
  rms_norm_forward(stream_, x_, delta, weight_, 1e-5f, sum, y, rstd_);

  Tensor y_of_x = matrix(6), y_of_delta = matrix(7);
  rms_norm_forward(stream_, over_x, delta, weight_, 1e-5f, over_x, y_of_x, rstd_);
  rms_norm_forward(stream_, x_, over_delta, weight_, 1e-5f, over_delta, y_of_delta, rstd_);

  EXPECT_EQ(to_floats(over_x), to_floats(sum));
  EXPECT_EQ(to_floats(over_delta), to_floats(sum));
  EXPECT_EQ(to_floats(y_of_x), to_floats(y));
  EXPECT_EQ(to_floats(y_of_delta), to_floats(y));
}

TEST_P(NormAgreementTest, BackwardRepeatsBitForBit) {
  rms_norm_forward(stream_, x_, {}, weight_, 1e-5f, {}, matrix(5), rstd_);
  const auto gradients = [&] {
    Tensor dx = matrix(7), dweight = random_tensor({width()}, 8);
    rms_norm_backward(stream_, workspace_, dy_, x_, weight_, rstd_, dx, dweight);
    return std::pair(to_floats(dx), to_floats(dweight));
  };

  const auto first = gradients();

  EXPECT_EQ(gradients(), first);
}

// In a flat buffer a parameter may follow one of odd size.
TEST_P(NormAgreementTest, AddressesNeedNoAlignment) {
  Tensor shifted({width() + 1}, DType::f32);
  std::copy_n(weight_.data<float>(), width(), shifted.data<float>() + 1);
  const ConstTensorView weight = shifted.view().rows(1, width());
  Tensor y = matrix(5), cpu_y = matrix(6), dx = matrix(7), cpu_dx = matrix(7);
  Tensor dweight({width()}, DType::f32), cpu_dweight({width()}, DType::f32);

  rms_norm_forward(stream_, x_, {}, weight, 1e-5f, {}, y, rstd_);
  rms_norm_backward(stream_, workspace_, dy_, x_, weight, rstd_, dx, dweight);

  cpu::rms_norm_forward(cpu_, x_, {}, weight_, 1e-5f, {}, cpu_y, cpu_rstd_);
  cpu::rms_norm_backward(cpu_, cpu_workspace_, dy_, x_, weight_, cpu_rstd_, cpu_dx, cpu_dweight);
  expect_close(y, cpu_y);
  expect_close(dx, cpu_dx, 1e-5);
  expect_close(dweight, cpu_dweight, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Rows, NormAgreementTest,
                         testing::Combine(testing::Values(1, 5, 67),
                                          testing::Values(1, 31, 32, 33, 64, 128, 257, 1032),
                                          testing::Values(DType::f32, DType::bf16)));
INSTANTIATE_TEST_SUITE_P(WideRows, NormAgreementTest,
                         testing::Combine(testing::Values(3),
                                          testing::Values(4096, 4099, 8193, 12288, 16384),
                                          testing::Values(DType::f32, DType::bf16)));

}  // namespace
}  // namespace switchyard
