// Copies, casts and sums, also at sizes and addresses that forbid 16-byte accesses.
#include "kernels/basic/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "kernels/runtime/check.h"
#include "kernels/runtime/host_mirror.h"
#include "tests/support/error_of.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;

constexpr int64_t kSizes[] = {0, 1, 31, 32, 33, 257, 4099};

// Elements [skip, skip + n) of a larger tensor: skip = 1 misaligns the address.
class SizeTest : public testing::TestWithParam<std::tuple<int64_t, int64_t, DType>> {
 protected:
  int64_t n() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<2>(GetParam()); }
  TensorView part(Tensor& tensor) const { return tensor.view().rows(std::get<1>(GetParam()), n()); }
  Tensor random(uint64_t seed, DType dtype) const { return random_tensor({n() + 2}, seed, dtype); }

  Stream stream_;
};

TEST_P(SizeTest, AddsAndLeavesTheNeighboursAlone) {
  Tensor x = random(1, dtype()), y = random(2, DType::f32);
  const auto before = to_floats(y), all_x = to_floats(x);

  add(stream_, part(x), part(y));

  const auto after = to_floats(y);
  const int64_t skip = std::get<1>(GetParam());
  for (int64_t i = 0; i < n() + 2; ++i) {
    const auto at = static_cast<size_t>(i);
    const bool inside = i >= skip && i < skip + n();
    EXPECT_EQ(after[at], inside ? before[at] + all_x[at] : before[at]);
  }
}

TEST_P(SizeTest, CastsThereAndBack) {
  Tensor x = random(1, dtype());
  Tensor wide({n() + 2}, DType::f32), back({n() + 2}, dtype());

  cast(stream_, part(x), part(wide));
  cast(stream_, part(wide), part(back));

  EXPECT_EQ(to_floats(part(wide)), to_floats(part(x)));
  EXPECT_EQ(to_floats(part(back)), to_floats(part(x)));
}

TEST_P(SizeTest, CopiesAndZeroes) {
  Tensor x = random(1, dtype()), y = random(2, dtype());

  copy(stream_, part(x), part(y));
  EXPECT_EQ(to_floats(part(y)), to_floats(part(x)));

  fill_zero(stream_, part(y));
  EXPECT_EQ(to_floats(part(y)), std::vector<float>(static_cast<size_t>(n()), 0.0f));
}

TEST_P(SizeTest, SumsInDouble) {
  Tensor x = random(1, DType::f32);
  double sum = 0.0, squares = 0.0, magnitude = 1e-30;
  for (const double v : to_floats(part(x))) {
    sum += v;
    squares += v * v;
    magnitude += std::abs(v);
  }
  Tensor totals = make_tensor<double>({2}, {1.0, 2.0});

  add_sum(stream_, part(x), 3.0, totals.view().rows(0, 1));
  add_sum_of_squares(stream_, part(x), 0.5, totals.view().rows(1, 1));

  EXPECT_NEAR(totals.data<double>()[0], 1.0 + 3.0 * sum, 1e-13 * magnitude);
  EXPECT_NEAR(totals.data<double>()[1], 2.0 + 0.5 * squares, 1e-13 * (squares + 1e-17));
}

TEST_P(SizeTest, ScalesInPlace) {
  Tensor x = random(1, DType::f32);
  auto expected = to_floats(part(x));
  for (float& v : expected) v *= 0.25f;

  scale(stream_, 0.25f, part(x));

  EXPECT_EQ(to_floats(part(x)), expected);
}

INSTANTIATE_TEST_SUITE_P(Sizes, SizeTest,
                         testing::Combine(testing::ValuesIn(kSizes), testing::Values(0, 1),
                                          testing::Values(DType::f32, DType::bf16)));

TEST(SumTest, IsTheSameForEveryCall) {
  Stream stream;
  const Tensor x = random_tensor({70001}, 3);
  Tensor first({1}, DType::f64), second({1}, DType::f64);

  add_sum(stream, x, 1.0, first);
  add_sum(stream, x, 1.0, second);

  EXPECT_EQ(first.data<double>()[0], second.data<double>()[0]);
}

TEST(BiasTest, RowsShareTheBiasAndItsGradientSumsThem) {
  Stream stream;
  test::Workspace workspace;
  for (const int64_t width : {1, 31, 33, 64, 257, 264}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      constexpr int64_t kRows = 267;
      Tensor y = random_tensor({kRows, width}, 1, dtype), dbias = random_tensor({width}, 2);
      const Tensor bias = random_tensor({width}, 3);
      const auto before = to_floats(y), start = to_floats(dbias);

      add_bias_backward(stream, workspace, y, dbias);
      add_bias(stream, bias, y);

      const auto after = to_floats(y);
      for (int64_t i = 0; i < width; ++i) {
        double column = start[static_cast<size_t>(i)];
        for (int64_t r = 0; r < kRows; ++r) {
          const auto at = static_cast<size_t>(r * width + i);
          column += before[at];
          const float exact = before[at] + bias.data<float>()[i];
          const float expected = dtype == DType::bf16 ? static_cast<float>(bfloat16(exact)) : exact;
          ASSERT_EQ(after[at], expected);
        }
        EXPECT_NEAR(dbias.data<float>()[i], column, 1e-4);
      }
    }
  }
}

TEST(HostMirrorTest, MovesValuesBothWays) {
  Stream stream;
  switchyard::Tensor tensor({5}, DType::f32, stream.device());
  HostMirror out(tensor);
  for (int i = 0; i < 5; ++i) out.host().data<float>()[i] = static_cast<float>(i);
  out.upload(stream);

  HostMirror in(tensor);
  in.download(stream);

  EXPECT_EQ(to_floats(in.host()), (std::vector<float>{0, 1, 2, 3, 4}));
}

TEST(DeviceTest, OpsRefuseTensorsOfAnotherDevice) {
  Stream stream;
  const switchyard::Tensor elsewhere({4}, DType::f32);  // in host memory
  Tensor y({4}, DType::f32);
  if (stream.device().kind == DeviceKind::cpu) GTEST_SKIP() << "there is only one device";

  EXPECT_EQ(test::error_of([&] {
              add(stream, elsewhere, y);
            }).find("add: a tensor of shape [4] is on cpu, the stream on cuda:0"),
            0u);
}

}  // namespace
}  // namespace switchyard
