#include "kernels/decode/fetch_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/runtime/check.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;
using test::to_vector;
using testing::ElementsAre;

TEST(FindRows, ListsSlotsOfHeldRowsAndWhatIsMissing) {
  Stream stream;
  const Tensor held = make_tensor<int32_t>({1, 2, 3}, {2, 5, 9, 0, 1, 2});
  const Tensor wanted = make_tensor<int32_t>({1, 2, 4}, {1, 2, 9, 11, 3, 4, 10, 11});
  Tensor slots({1, 2, 4}, DType::i32), missing({1, 2, 4}, DType::i32);
  Tensor figures = make_tensor<int32_t>({1, 2, 2}, {100, 10, 0, 0});

  find_rows(stream, held, wanted, /*missing_slot=*/20, /*known=*/11, slots, missing, figures);

  EXPECT_THAT(to_vector<int32_t>(slots), ElementsAre(20, 0, 2, 23, 20, 21, 22, 23));
  EXPECT_THAT(to_vector<int32_t>(missing), ElementsAre(1, -1, -1, 11, 3, 4, 10, 11));
  EXPECT_THAT(to_vector<int32_t>(figures), ElementsAre(103, 11, 3, 3));
}

TEST(FindRows, WithoutHeldRowsEverythingIsMissing) {
  Stream stream;
  const Tensor wanted = make_tensor<int32_t>({2, 1, 2}, {1, 2, 3, 4});
  Tensor slots({2, 1, 2}, DType::i32), missing({2, 1, 2}, DType::i32),
      figures({2, 1, 2}, DType::i32);

  find_rows(stream, {}, wanted, /*missing_slot=*/5, /*known=*/100, slots, missing, figures);

  EXPECT_THAT(to_vector<int32_t>(slots), ElementsAre(5, 6, 5, 6));
  EXPECT_THAT(to_vector<int32_t>(missing), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(to_vector<int32_t>(figures), ElementsAre(2, 2, 2, 2));
}

TEST(FindRows, FindsEveryRowOfLongLists) {
  constexpr int32_t kHeld = 300;
  std::vector<int32_t> of_held(kHeld), of_wanted(kHeld);
  for (int32_t i = 0; i < kHeld; ++i) {
    of_held[static_cast<size_t>(i)] = 3 * i;
    of_wanted[static_cast<size_t>(i)] = 2 * i;
  }
  Stream stream;
  const Tensor held = make_tensor<int32_t>({1, 1, kHeld}, of_held);
  const Tensor wanted = make_tensor<int32_t>({1, 1, kHeld}, of_wanted);
  Tensor slots({1, 1, kHeld}, DType::i32), missing(slots.shape(), DType::i32);
  Tensor figures({1, 1, 2}, DType::i32);

  find_rows(stream, held, wanted, kHeld, /*known=*/1000, slots, missing, figures);

  for (int32_t i = 0; i < kHeld; ++i) {
    const bool is_held = 2 * i % 3 == 0;
    EXPECT_EQ(slots.data<int32_t>()[i], is_held ? 2 * i / 3 : kHeld + i);
    EXPECT_EQ(missing.data<int32_t>()[i], is_held ? -1 : 2 * i);
  }
}

struct Case {
  int64_t head_dim;
  DType dtype;
};

class FetchRowsTest : public testing::TestWithParam<Case> {};

TEST_P(FetchRowsTest, CopiesTheListedRowsAndNoOthers) {
  const auto [head_dim, dtype] = GetParam();
  Stream stream;
  const Shape far_shape{2, 2, 7, head_dim}, near_shape{2, 2, 6, head_dim};
  const Tensor far_k = random_tensor(far_shape, 1, dtype),
               far_v = random_tensor(far_shape, 2, dtype);
  const Tensor before_k = random_tensor(near_shape, 3, dtype);
  const Tensor before_v = random_tensor(near_shape, 4, dtype);
  Tensor near_k = random_tensor(near_shape, 3, dtype), near_v = random_tensor(near_shape, 4, dtype);
  // Positions from 6 on are not there yet.
  const std::vector<int32_t> wanted = {0, 5, -1, -1, 2, 6, 3, 4, 5, -1, -1, -1};
  const Tensor positions = make_tensor<int32_t>({2, 2, 3}, wanted);

  fetch_rows(stream, far_k, far_v, positions, /*length=*/6, /*first_slot=*/2, near_k, near_v);

  const auto row_of = [&](const Tensor& x, int64_t head, int64_t row) {
    const std::vector<float> all = to_floats(x);
    const auto begin = all.begin() + (head * x.shape()[2] + row) * head_dim;
    return std::vector<float>(begin, begin + head_dim);
  };
  for (int64_t head = 0; head < 4; ++head) {
    for (int64_t slot = 0; slot < 6; ++slot) {
      const bool listed = slot >= 2 && slot < 5;
      const int32_t position = listed ? wanted[static_cast<size_t>(head * 3 + slot - 2)] : -1;
      const bool comes = position >= 0 && position < 6;
      EXPECT_EQ(row_of(near_k, head, slot),
                comes ? row_of(far_k, head, position) : row_of(before_k, head, slot));
      EXPECT_EQ(row_of(near_v, head, slot),
                comes ? row_of(far_v, head, position) : row_of(before_v, head, slot));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, FetchRowsTest,
                         testing::Values(Case{1, DType::f32}, Case{33, DType::f32},
                                         Case{64, DType::f32}, Case{5, DType::bf16},
                                         Case{1032, DType::bf16}),
                         [](const auto& test) {
                           return std::string(to_string(test.param.dtype)) + "_" +
                                  std::to_string(test.param.head_dim);
                         });

TEST(FetchRows, ASlotBeyondTheNearRowsIsAnError) {
  Stream stream;
  const Tensor far = random_tensor({1, 1, 4, 8}, 1);
  Tensor near = random_tensor({1, 1, 3, 8}, 2);
  const Tensor positions = make_tensor<int32_t>({1, 1, 2}, {0, 1});

  EXPECT_THROW(fetch_rows(stream, far, far, positions, 4, /*first_slot=*/2, near, near), Error);
}

}  // namespace
}  // namespace switchyard
