// The iteration against itself in double, and its effect on singular values.
#include "kernels/optimizer/newton_schulz.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/newton_schulz_reference.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;
using test::Workspace;

test::Matrix matrix_of(Tensor& x) {
  const auto floats = to_floats(x);
  return {x.shape()[0], x.shape()[1], {floats.begin(), floats.end()}};
}

Tensor orthogonalised(Stream& stream, Tensor x, int steps = 5) {
  Workspace workspace;
  newton_schulz(stream, workspace, steps, x);
  stream.synchronize();
  return x;
}

class NewtonSchulzTest : public testing::TestWithParam<std::tuple<int64_t, int64_t>> {
 protected:
  Shape shape() const { return {std::get<0>(GetParam()), std::get<1>(GetParam())}; }
  Stream stream_;
};

TEST_P(NewtonSchulzTest, FollowsTheQuinticIteration) {
  for (const int steps : {1, 2, 5}) {
    Tensor x = random_tensor(shape(), 7);
    const test::Matrix expected = test::newton_schulz_reference(matrix_of(x), steps);

    const Tensor y = orthogonalised(stream_, std::move(x), steps);

    const auto values = to_floats(y);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(values[i], expected.values[i], 2e-4) << "element " << i << ", " << steps;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, NewtonSchulzTest,
                         testing::Combine(testing::Values(1, 31, 32, 33, 70),
                                          testing::Values(1, 31, 32, 33, 70)));

// The singular values of a matrix with orthogonal columns are the lengths of the columns, and the
// iteration keeps the columns orthogonal.
TEST(NewtonSchulzSpectrumTest, SingularValuesApproachOneWhateverTheyWere) {
  constexpr int64_t kSize = 32;
  Stream stream;
  Tensor x({kSize, kSize}, DType::f32);
  // The columns of a discrete cosine transform, with lengths that fall from 1 to 0.01.
  const auto length_of = [](int64_t j) {
    return std::pow(10.0, -2.0 * static_cast<double>(j) / 31);
  };
  for (int64_t i = 0; i < kSize; ++i) {
    for (int64_t j = 0; j < kSize; ++j) {
      const double norm = std::sqrt((j == 0 ? 1.0 : 2.0) / kSize);
      x.data<float>()[i * kSize + j] = static_cast<float>(
          length_of(j) * norm *
          std::cos(M_PI * (static_cast<double>(i) + 0.5) * static_cast<double>(j) / kSize));
    }
  }

  const Tensor y = orthogonalised(stream, std::move(x));

  const auto values = to_floats(y);
  for (int64_t j = 0; j < kSize; ++j) {
    double squares = 0.0;
    for (int64_t i = 0; i < kSize; ++i) {
      const double v = values[static_cast<size_t>(i * kSize + j)];
      squares += v * v;
    }
    EXPECT_GT(std::sqrt(squares), 0.67) << "singular value " << j;
    EXPECT_LT(std::sqrt(squares), 1.21) << "singular value " << j;
  }
}

TEST(NewtonSchulzSpectrumTest, AMatrixOfZerosStaysOne) {
  Stream stream;

  const Tensor y = orthogonalised(stream, Tensor({5, 3}, DType::f32));

  EXPECT_EQ(to_floats(y), std::vector<float>(15, 0.0f));
}

// The squares of gradients of 1e30 overflow f32.
TEST(NewtonSchulzSpectrumTest, TheScaleOfAMatrixDoesNotMatter) {
  Stream stream;
  Tensor x = random_tensor({33, 31}, 7), large = random_tensor({33, 31}, 7);
  for (int64_t i = 0; i < large.num_elements(); ++i) large.data<float>()[i] *= 0x1p100f;

  const Tensor expected = orthogonalised(stream, std::move(x));
  const Tensor result = orthogonalised(stream, std::move(large));

  const auto a = to_floats(expected), b = to_floats(result);
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5);
}

TEST(NewtonSchulzSpectrumTest, TheNumberOfThreadsDoesNotChangeABit) {
  Stream stream;
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto one = to_floats(orthogonalised(stream, random_tensor({300, 530}, 7)));
  omp_set_num_threads(3);
  const auto three = to_floats(orthogonalised(stream, random_tensor({300, 530}, 7)));
  omp_set_num_threads(before);

  EXPECT_EQ(one, three);
}

}  // namespace
}  // namespace switchyard
