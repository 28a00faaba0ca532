#include "kernels/linear/matmul_with_bias.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "kernels/runtime/check.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;

constexpr int64_t kSizes[] = {1, 31, 32, 33, 257};

class MatmulWithBiasTest
    : public testing::TestWithParam<std::tuple<DType, Transpose, Transpose, int64_t>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  Transpose transpose_a() const { return std::get<1>(GetParam()); }
  Transpose transpose_b() const { return std::get<2>(GetParam()); }

  // A matrix that begins `skip` elements into a larger tensor, so that its address is misaligned.
  TensorView part(Tensor& tensor, int64_t rows, int64_t columns, Transpose transpose) const {
    const Shape shape = transpose == Transpose::yes ? Shape{columns, rows} : Shape{rows, columns};
    return tensor.view().rows(std::get<3>(GetParam()), rows * columns).reshape(shape);
  }
  Tensor random(int64_t n, uint64_t seed, DType dtype) const {
    return random_tensor({n + 1}, seed, dtype);
  }

  void expect_equal_to_reference(int64_t m, int64_t n, int64_t k) {
    Tensor a = random(m * k, 1, dtype()), b = random(k * n, 2, dtype());
    Tensor bias = random(n, 3, DType::f32), c = random(m * n, 4, dtype());
    const TensorView product = part(c, m, n, Transpose::no);
    const TensorView addend = part(bias, n, 1, Transpose::no).reshape({n});

    // The second call finds the algorithm that the first one chose.
    for (int i = 0; i < 2; ++i) {
      matmul_with_bias(stream_, part(a, m, k, transpose_a()), transpose_a(),
                       part(b, k, n, transpose_b()), transpose_b(), addend, product);
    }

    const auto x = to_floats(part(a, m, k, transpose_a()));
    const auto y = to_floats(part(b, k, n, transpose_b()));
    const auto added = to_floats(addend), actual = to_floats(product);
    const bool ta = transpose_a() == Transpose::yes, tb = transpose_b() == Transpose::yes;
    // The error is at most one step: half a step of rounding from the bias, and on some backends
    // two further roundings of the sum.
    const double step = dtype() == DType::f32 ? 1e-6 : 0x1p-7;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = added[static_cast<size_t>(j)];
        for (int64_t l = 0; l < k; ++l) {
          sum += static_cast<double>(x[static_cast<size_t>(ta ? l * m + i : i * k + l)]) *
                 y[static_cast<size_t>(tb ? j * k + l : l * n + j)];
        }
        ASSERT_NEAR(actual[static_cast<size_t>(i * n + j)], sum,
                    step * (std::sqrt(k) + std::abs(added[static_cast<size_t>(j)]) + std::abs(sum)))
            << m << " x " << n << " x " << k << " at " << i << ", " << j;
      }
    }
  }

  Stream stream_;
};

TEST_P(MatmulWithBiasTest, EqualsTheDoubleReferenceForEverySize) {
  for (const int64_t size : kSizes) {
    expect_equal_to_reference(size, 33, 31);
    expect_equal_to_reference(33, size, 32);
    expect_equal_to_reference(31, 32, size);
  }
}

TEST_P(MatmulWithBiasTest, WithoutAnInnerDimensionOnlyTheBiasIsLeft) {
  const Tensor a({0}, dtype()), b({0}, dtype());
  const Tensor bias = random_tensor({5}, 3);
  Tensor c = random_tensor({2, 5}, 4, dtype());

  matmul_with_bias(stream_, a.view().reshape({2, 0}), Transpose::no, b.view().reshape({0, 5}),
                   Transpose::no, bias, c);

  for (int64_t i = 0; i < 10; ++i) {
    EXPECT_NEAR(to_floats(c)[static_cast<size_t>(i)], bias.data<float>()[i % 5], 2e-2);
  }
}

INSTANTIATE_TEST_SUITE_P(All, MatmulWithBiasTest,
                         testing::Combine(testing::Values(DType::f32, DType::bf16),
                                          testing::Values(Transpose::no, Transpose::yes),
                                          testing::Values(Transpose::no, Transpose::yes),
                                          testing::Values(0, 1)));

TEST(MatmulWithBiasErrorTest, RefusesABiasOfAnotherLength) {
  Stream stream;
  const Tensor a({2, 3}, DType::f32), b({4, 3}, DType::f32), bias({3}, DType::f32);
  Tensor c({2, 4}, DType::f32);

  EXPECT_THROW(matmul_with_bias(stream, a, Transpose::no, b, Transpose::yes, bias, c), Error);
}

}  // namespace
}  // namespace switchyard
