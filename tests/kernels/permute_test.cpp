#include "kernels/moe/permute.h"

#include <gtest/gtest.h>

#include <tuple>

#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;

class PermuteTest : public testing::TestWithParam<std::tuple<int64_t, DType>> {
 protected:
  static constexpr int64_t kRows = 9;
  int64_t width() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }

  Stream stream_;
};

TEST_P(PermuteTest, GathersRowsInAnyOrderAndNumber) {
  const Tensor x = random_tensor({kRows, width()}, 1, dtype());
  std::vector<int32_t> source;
  for (int32_t i = 0; i < 37; ++i) source.push_back(i * 5 % kRows);
  Tensor y({37, width()}, dtype());

  gather_rows(stream_, x, make_tensor<int32_t>({37}, source), y);

  const auto in = to_floats(x), out = to_floats(y);
  for (size_t i = 0; i < out.size(); ++i) {
    const auto row = static_cast<size_t>(i) / static_cast<size_t>(width());
    const auto column = i % static_cast<size_t>(width());
    ASSERT_EQ(out[i], in[static_cast<size_t>(source[row] * width()) + column]);
  }
}

// The members of a row are its places; a row may have none, and places may be numbered from
// elsewhere.
TEST_P(PermuteTest, SpreadsEachRowToItsMembers) {
  const Tensor x = random_tensor({4, width()}, 1, dtype());
  const std::vector<int32_t> offsets = {0, 2, 2, 3, 9};
  const std::vector<int32_t> members = {28, 20, 23, 22, 27, 21, 24, 26, 25};
  const std::vector<size_t> source = {0, 3, 3, 2, 3, 3, 3, 3, 0};
  Tensor y({kRows, width()}, dtype()), again({kRows, width()}, dtype());

  spread_rows(stream_, x, make_tensor<int32_t>({5}, offsets), make_tensor<int32_t>({9}, members),
              20, y);
  const std::vector<int32_t> padded = {-1, 28, -1, -1, 20, -1, -1, -1, -1, -1, -1, -1,
                                       23, -1, -1, -1, -1, -1, 22, 27, 21, 24, 26, 25};
  spread_rows(stream_, x, {}, make_tensor<int32_t>({24}, padded), 20, again);

  const auto in = to_floats(x), out = to_floats(y);
  const auto columns = static_cast<size_t>(width());
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], in[source[i / columns] * columns + i % columns]);
  }
  EXPECT_EQ(to_floats(again), out);
}

// Members may repeat; rows without members become zero; y is overwritten.
TEST_P(PermuteTest, SumsTheMembersOfEachRowInOrder) {
  const Tensor x = random_tensor({kRows, width()}, 1, dtype());
  const std::vector<int32_t> offsets = {0, 0, 1, 4, 13, 13};
  const std::vector<int32_t> members = {8, 0, 3, 3, 1, 2, 3, 4, 5, 6, 7, 8, 0};
  Tensor y = random_tensor({5, width()}, 2, dtype());

  sum_rows(stream_, x, make_tensor<int32_t>({6}, offsets), make_tensor<int32_t>({13}, members), 0,
           y);

  const auto in = to_floats(x), out = to_floats(y);
  for (size_t row = 0; row < 5; ++row) {
    for (int64_t i = 0; i < width(); ++i) {
      float sum = 0.0f;
      for (int32_t j = offsets[row]; j < offsets[row + 1]; ++j) {
        sum += in[static_cast<size_t>(members[static_cast<size_t>(j)] * width() + i)];
      }
      if (dtype() == DType::bf16) sum = bfloat16(sum);
      ASSERT_EQ(out[row * static_cast<size_t>(width()) + static_cast<size_t>(i)], sum);
    }
  }
}

// The same sums as by offsets, of members that are numbered from elsewhere.
TEST_P(PermuteTest, SumsMembersOfEqualNumberUnlessTheyAreNone) {
  const Tensor x = random_tensor({kRows, width()}, 1, dtype());
  const std::vector<int32_t> offsets = {0, 2, 2, 8}, members = {28, 23, 21, 22, 23, 24, 25, 26};
  const std::vector<int32_t> padded = {-1, 28, -1, -1, 23, -1, -1, -1, -1,
                                       -1, -1, -1, 21, 22, 23, 24, 25, 26};
  Tensor expected({3, width()}, dtype()), y = random_tensor({3, width()}, 2, dtype());
  sum_rows(stream_, x, make_tensor<int32_t>({4}, offsets), make_tensor<int32_t>({8}, members), 20,
           expected);

  sum_rows(stream_, x, {}, make_tensor<int32_t>({18}, padded), 20, y);

  EXPECT_EQ(to_floats(y), to_floats(expected));
  const auto in = to_floats(x), out = to_floats(y);
  float first = in[static_cast<size_t>(8 * width())] + in[static_cast<size_t>(3 * width())];
  if (dtype() == DType::bf16) first = bfloat16(first);
  EXPECT_EQ(out[0], first);
}

TEST_P(PermuteTest, SumsNeighboursWithoutMembers) {
  const Tensor x = random_tensor({6, width()}, 1, dtype());
  Tensor expected({2, width()}, dtype()), y = random_tensor({2, width()}, 2, dtype());
  sum_rows(stream_, x, {}, make_tensor<int32_t>({6}, {0, 1, 2, 3, 4, 5}), 0, expected);

  sum_rows(stream_, x, {}, {}, 0, y);

  EXPECT_EQ(to_floats(y), to_floats(expected));
}

TEST_P(PermuteTest, NoRowsAreNoWork) {
  const Tensor x = random_tensor({kRows, width()}, 1, dtype());
  Tensor none({0, width()}, dtype());

  gather_rows(stream_, x, Tensor({0}, DType::i32), none);
  spread_rows(stream_, none, {}, Tensor({0}, DType::i32), 0, none);
  sum_rows(stream_, x, make_tensor<int32_t>({1}, {0}), Tensor({0}, DType::i32), 0, none);
}

INSTANTIATE_TEST_SUITE_P(Widths, PermuteTest,
                         testing::Combine(testing::Values(1, 31, 32, 33, 257, 1032),
                                          testing::Values(DType::f32, DType::bf16)));

}  // namespace
}  // namespace switchyard
