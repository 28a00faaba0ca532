#include "kernels/moe/slot_products.h"

#include <gtest/gtest.h>

#include <tuple>

#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::relative_error;
using test::Stream;
using test::Tensor;
using test::to_floats;

class SlotProductsTest
    : public testing::TestWithParam<std::tuple<int64_t, int64_t, int64_t, DType>> {
 protected:
  static constexpr int64_t kTopK = 3, kExperts = 5;
  int64_t tokens() const { return std::get<0>(GetParam()); }
  int64_t in() const { return std::get<1>(GetParam()); }
  int64_t out() const { return std::get<2>(GetParam()); }
  DType dtype() const { return std::get<3>(GetParam()); }

  // Expert 3 has no slot, expert 1 many, and some slots have no expert.
  Tensor experts() const {
    constexpr int32_t kPattern[] = {1, 4, 0, 1, -1, 2, 4, 1, 0, 2, 1, -1};
    std::vector<int32_t> idx;
    for (int64_t i = 0; i < tokens() * kTopK; ++i) idx.push_back(kPattern[i % 12]);
    return make_tensor<int32_t>({tokens(), kTopK}, idx);
  }

  // x [tokens or slots, in]
  std::vector<float> expected(const Tensor& x, const Tensor& idx, const Tensor& weight) const {
    const int64_t slots = tokens() * kTopK, of_row = slots / x.shape()[0];
    const auto rows = to_floats(x), weights = to_floats(weight);
    const auto expert = test::to_vector<int32_t>(idx);
    std::vector<float> y(static_cast<size_t>(slots * out()), 0.0f);
    for (int64_t i = 0; i < slots * out(); ++i) {
      const int64_t slot = i / out(), e = expert[static_cast<size_t>(slot)];
      double sum = 0.0;
      for (int64_t d = 0; e >= 0 && d < in(); ++d) {
        sum += static_cast<double>(rows[static_cast<size_t>(slot / of_row * in() + d)]) *
               weights[static_cast<size_t>((e * out() + i % out()) * in() + d)];
      }
      y[static_cast<size_t>(i)] = static_cast<float>(sum);
    }
    return y;
  }

  Stream stream_;
};

TEST_P(SlotProductsTest, EverySlotReadsTheRowOfItsTokenAndTheWeightOfItsExpert) {
  const Tensor x = random_tensor({tokens(), in()}, 1, dtype()), idx = experts();
  const Tensor weight = random_tensor({kExperts, out(), in()}, 2, dtype());
  Tensor y = random_tensor({tokens() * kTopK, out()}, 3, dtype());  // overwritten

  slot_products(stream_, x, idx, weight, y);

  EXPECT_LT(relative_error(to_floats(y), expected(x, idx, weight)),
            dtype() == DType::f32 ? 1e-6 : 4e-3);
}

TEST_P(SlotProductsTest, EverySlotReadsItsOwnRow) {
  const Tensor x = random_tensor({tokens() * kTopK, in()}, 1, dtype()), idx = experts();
  const Tensor weight = random_tensor({kExperts, out(), in()}, 2, dtype());
  Tensor y({tokens() * kTopK, out()}, dtype());

  slot_products(stream_, x, idx, weight, y);

  EXPECT_LT(relative_error(to_floats(y), expected(x, idx, weight)),
            dtype() == DType::f32 ? 1e-6 : 4e-3);
}

// What a token gets does not depend on the others of its batch.
TEST_P(SlotProductsTest, ATokenAloneHasTheSameBits) {
  const Tensor x = random_tensor({tokens(), in()}, 1, dtype()), idx = experts();
  const Tensor weight = random_tensor({kExperts, out(), in()}, 2, dtype());
  Tensor all({tokens() * kTopK, out()}, dtype()), alone({kTopK, out()}, dtype());
  const int64_t last = tokens() - 1;
  slot_products(stream_, x, idx, weight, all);

  slot_products(stream_, x.view().rows(last, 1), idx.view().rows(last, 1), weight, alone);

  EXPECT_EQ(to_floats(alone), to_floats(all.view().rows(last * kTopK, kTopK)));
}

// More slots than a warp has lanes; rows that allow 16-byte accesses and rows that do not.
INSTANTIATE_TEST_SUITE_P(Sizes, SlotProductsTest,
                         testing::Combine(testing::Values(1, 4, 25),
                                          testing::Values(1, 33, 64, 264),
                                          testing::Values(1, 9, 32),
                                          testing::Values(DType::f32, DType::bf16)));

}  // namespace
}  // namespace switchyard
