#include "kernels/basic/combine_parts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/test_device.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::Tensor;

class CombinePartsTest : public testing::Test {
 protected:
  // Inexact in every floating dtype, so that another order of summation gives other bits.
  template <class T>
  static T element(size_t part, int64_t i) {
    const double value = 1000.0 * std::sin(static_cast<double>(i + 113 * static_cast<int>(part)));
    if constexpr (std::is_same_v<T, bfloat16>) return bfloat16(static_cast<float>(value));
    return static_cast<T>(value);
  }

  // Combines `count` parts of n elements into the one of index `target`, or into a tensor of its
  // own if there is no such part, and compares with one part after the other in A.
  template <class T, class A = T>
  void expect_in_order(size_t count, int64_t n, ReduceOp op, size_t target) {
    std::vector<Tensor> parts;
    std::vector<A> totals(static_cast<size_t>(n));
    for (size_t p = 0; p < count; ++p) {
      std::vector<T> values;
      for (int64_t i = 0; i < n; ++i) {
        values.push_back(element<T>(p, i));
        A& total = totals[static_cast<size_t>(i)];
        const auto value = static_cast<A>(values.back());
        if (p == 0) {
          total = value;
        } else if (op == ReduceOp::sum) {
          total += value;
        } else {
          total = op == ReduceOp::max ? std::max(total, value) : std::min(total, value);
        }
      }
      parts.push_back(test::make_tensor({n}, values));
    }
    Tensor apart({n}, dtype_of<T>());
    Tensor& out = target < count ? parts[target] : apart;

    combine_parts(stream_, std::vector<ConstTensorView>(parts.begin(), parts.end()), op, out);

    const T* results = out.data<T>();
    for (int64_t i = 0; i < n; ++i) {
      const T expected(totals[static_cast<size_t>(i)]);
      ASSERT_EQ(static_cast<double>(results[i]), static_cast<double>(expected))
          << to_string(dtype_of<T>()) << ", element " << i << " of " << count << " parts";
    }
  }

  template <class T, class A = T>
  void expect_in_order_of_all_kinds(size_t count, int64_t n) {
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) {
      expect_in_order<T, A>(count, n, op, /*target=*/count);
    }
    // Earlier runs must not overwrite the part that is also the result.
    expect_in_order<T, A>(count, n, ReduceOp::sum, /*target=*/count - 1);
  }

  test::Stream stream_;
};

// A CUDA device takes up to 256 parts in one launch.
TEST_F(CombinePartsTest, AnyNumberOfPartsGivesTheBitsOfOneAfterTheOther) {
  for (const size_t count : {1, 2, 255, 256, 257, 300, 1024}) {
    for (const int64_t n : {1, 33}) {
      expect_in_order_of_all_kinds<float>(count, n);
      expect_in_order_of_all_kinds<bfloat16, float>(count, n);
      expect_in_order_of_all_kinds<double>(count, n);
      expect_in_order_of_all_kinds<int32_t>(count, n);
      expect_in_order_of_all_kinds<int64_t>(count, n);
    }
  }
}

// 64 KiB of partial results, the scratch of a stream, are 16,384 in f32 and 8,192 in f64.
TEST_F(CombinePartsTest, TensorsMayBeLongerThanTheScratchOfAStream) {
  expect_in_order<bfloat16, float>(300, 16384 + 5, ReduceOp::sum, /*target=*/299);
  expect_in_order<double>(300, 8192 + 5, ReduceOp::sum, /*target=*/299);
}

TEST_F(CombinePartsTest, Bf16StaysF32BetweenRuns) {
  std::vector<Tensor> parts;
  for (int p = 0; p < 302; ++p) {
    parts.push_back(test::make_tensor({1}, std::vector<bfloat16>{bfloat16(p == 0 ? 256.f : 1.f)}));
  }
  Tensor out({1}, DType::bf16);

  combine_parts(stream_, std::vector<ConstTensorView>(parts.begin(), parts.end()), ReduceOp::sum,
                out);

  // 557 is 556 in bf16. The first run's 511 would be 512, and the total then 558, which is 560.
  EXPECT_EQ(static_cast<float>(out.data<bfloat16>()[0]), 556.0f);
}

TEST_F(CombinePartsTest, ANanOfAnyRunSurvives) {
  for (const size_t holder : {size_t{0}, size_t{255}, size_t{299}}) {
    std::vector<Tensor> parts;
    for (size_t p = 0; p < 300; ++p) {
      parts.push_back(test::make_tensor({1}, std::vector<float>{p == holder ? NAN : 1.0f}));
    }
    Tensor out({1}, DType::f32);
    for (const ReduceOp op : {ReduceOp::max, ReduceOp::min}) {
      combine_parts(stream_, std::vector<ConstTensorView>(parts.begin(), parts.end()), op, out);
      EXPECT_TRUE(std::isnan(out.data<float>()[0])) << "in part " << holder;
    }
  }
}

}  // namespace
}  // namespace switchyard
