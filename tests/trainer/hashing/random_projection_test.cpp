#include "trainer/hashing/random_projection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace switchyard {
namespace {

ModelConfig small_model() {
  ModelConfig model;
  model.num_layers = 3;
  model.num_heads = 4;
  model.num_kv_heads = 2;
  model.head_dim = 16;
  return model;
}

// ||W'W - I||_F
double distance_to_orthonormal_columns(const Tensor& weight) {
  const int64_t rows = weight.shape()[0], columns = weight.shape()[1];
  const float* w = weight.data<float>();
  double sum = 0.0;
  for (int64_t a = 0; a < columns; ++a) {
    for (int64_t b = 0; b < columns; ++b) {
      double dot = a == b ? -1.0 : 0.0;
      for (int64_t r = 0; r < rows; ++r) dot += double{w[r * columns + a]} * w[r * columns + b];
      sum += dot * dot;
    }
  }
  return std::sqrt(sum);
}

class RandomProjectionTest : public testing::TestWithParam<int> {};

TEST_P(RandomProjectionTest, OrthogonalOnesAreAsNearToOrthonormalColumnsAsTheirRankAllows) {
  constexpr int64_t kHeadDim = 64;
  const int bits = GetParam();

  const Tensor weight =
      random_projection(HashInit::orthogonal, projection_key(5, 1, 0), kHeadDim, bits);

  ASSERT_EQ(weight.shape(), (Shape{kHeadDim, bits}));
  const double least = std::sqrt(std::max<double>(0.0, static_cast<double>(bits - kHeadDim)));
  EXPECT_NEAR(distance_to_orthonormal_columns(weight), least, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Bits, RandomProjectionTest, testing::Values(32, 64, 96, 128, 512));

TEST(RandomProjectionTest, GaussianOnesHaveMeanZeroAndVarianceOne) {
  const Tensor weight = random_projection(HashInit::gaussian, projection_key(5, 1, 0), 128, 128);

  double sum = 0.0, squares = 0.0;
  for (int64_t i = 0; i < weight.num_elements(); ++i) {
    sum += weight.data<float>()[i];
    squares += double{weight.data<float>()[i]} * weight.data<float>()[i];
  }
  const auto n = static_cast<double>(weight.num_elements());
  EXPECT_NEAR(sum / n, 0.0, 0.03);
  EXPECT_NEAR(squares / n, 1.0, 0.05);
}

TEST(RandomProjectionTest, EveryLayerHeadAndSeedHasItsOwn) {
  std::set<float> firsts;
  for (const uint64_t seed : {1, 2}) {
    const HashWeights weights =
        random_hash_weights(seed, HashInit::orthogonal, small_model(), 32, /*dense_layers=*/1);
    for (int layer = 1; layer < 3; ++layer) {
      for (int head = 0; head < 2; ++head) {
        firsts.insert(
            *weights.layers[static_cast<size_t>(layer)].keys.view().rows(head, 1).data<float>());
      }
    }
  }
  EXPECT_EQ(firsts.size(), 8u);
}

TEST(RandomProjectionTest, DenseLayersHaveNone) {
  const HashWeights weights =
      random_hash_weights(3, HashInit::orthogonal, small_model(), 32, /*dense_layers=*/2);

  EXPECT_FALSE(weights.has_layer(0));
  EXPECT_FALSE(weights.has_layer(1));
  EXPECT_TRUE(weights.has_layer(2));
  EXPECT_FALSE(weights.has_layer(3));
}

}  // namespace
}  // namespace switchyard
