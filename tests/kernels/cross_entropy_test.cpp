// Cross-entropy on the device of the tests against the CPU's bodies, with vocabulary sizes that
// allow 16-byte accesses and sizes that do not.
#include "kernels/vocabulary/cross_entropy.h"

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

TEST(MaskColumnsTest, ColumnsThatNoIdHasChangeNothing) {
  constexpr int64_t kTokens = 5, kVocab = 37, kColumns = 40, kFirst = 100;
  Stream stream;
  const Tensor logits = random_tensor({kTokens, kVocab}, 1, DType::f32, 4.0f);
  const Tensor targets =
      make_tensor<int32_t>({kTokens}, {100, 136, 137, -1, 99});  // 137: another rank's
  Tensor padded({kTokens, kColumns}, DType::f32);
  for (int64_t i = 0; i < kTokens * kColumns; ++i) {
    const int64_t column = i % kColumns;
    padded.data<float>()[i] =
        column < kVocab ? logits.data<float>()[i / kColumns * kVocab + column] : 1e30f;
  }
  Tensor max({kTokens}, DType::f32), sum({kTokens}, DType::f32), target({kTokens}, DType::f32),
      expected_target({kTokens}, DType::f32);
  Tensor expected_max({kTokens}, DType::f32), expected_sum({kTokens}, DType::f32);
  Tensor dlogits({kTokens, kColumns}, DType::bf16), expected({kTokens, kVocab}, DType::bf16);

  mask_columns(stream, kVocab, padded);

  cross_entropy_forward(stream, logits, targets, kFirst, expected_max, expected_sum,
                        expected_target);
  cross_entropy_backward(stream, logits, targets, kFirst, expected_max, expected_sum, 0.5f,
                         expected);
  cross_entropy_forward(stream, padded, targets, IdRange(kFirst, kVocab), max, sum, target);
  cross_entropy_backward(stream, padded, targets, IdRange(kFirst, kVocab), max, sum, 0.5f, dlogits);
  EXPECT_EQ(to_floats(max), to_floats(expected_max));
  EXPECT_EQ(to_floats(target), to_floats(expected_target));
  EXPECT_LT(test::relative_error(to_floats(sum), to_floats(expected_sum)), 1e-6);
  const std::vector<float> of_ids = to_floats(expected), of_columns = to_floats(dlogits);
  for (size_t i = 0; i < of_columns.size(); ++i) {
    const size_t column = i % kColumns;
    if (column >= kVocab) {
      EXPECT_EQ(of_columns[i], 0.0f);
    } else {
      EXPECT_NEAR(of_columns[i], of_ids[i / kColumns * kVocab + column], 1e-3);
    }
  }
}

class CrossEntropyAgreementTest : public testing::TestWithParam<std::tuple<int64_t, DType>> {
 protected:
  static constexpr int64_t kTokens = 5, kFirst = 100;
  int64_t vocab() const { return std::get<0>(GetParam()); }
};

TEST_P(CrossEntropyAgreementTest, EveryStepIsTheCpus) {
  Stream stream;
  switchyard::Stream cpu_stream;
  const Tensor logits = random_tensor({kTokens, vocab()}, 1, DType::f32, 4.0f);
  // The first and the last id of this shard, one id of the shard on either side, and no target.
  const auto last = static_cast<int32_t>(kFirst + vocab() - 1);
  const Tensor targets = make_tensor<int32_t>({kTokens}, {kFirst, last, last + 1, kFirst - 1, -1});
  struct Rows {
    Tensor max{{kTokens}, DType::f32}, sum{{kTokens}, DType::f32}, target{{kTokens}, DType::f32},
        losses{{kTokens}, DType::f32};
  } rows, cpu_rows;
  Tensor dlogits({kTokens, vocab()}, std::get<1>(GetParam()));
  Tensor cpu_dlogits({kTokens, vocab()}, std::get<1>(GetParam()));

  cross_entropy_forward(stream, logits, targets, kFirst, rows.max, rows.sum, rows.target);
  cpu::cross_entropy_forward(cpu_stream, logits, targets, kFirst, cpu_rows.max, cpu_rows.sum,
                             cpu_rows.target);
  EXPECT_EQ(to_floats(rows.max), to_floats(cpu_rows.max));
  // Either body may add thousands of terms one after the other.
  EXPECT_LT(test::relative_error(to_floats(rows.sum), to_floats(cpu_rows.sum)), 1e-5);
  EXPECT_EQ(to_floats(rows.target), to_floats(cpu_rows.target));

  const Tensor all_max = random_tensor({kTokens}, 2, DType::f32, 4.0f);
  Tensor sum = make_tensor<float>({kTokens}, to_floats(cpu_rows.sum));
  Tensor cpu_sum = make_tensor<float>({kTokens}, to_floats(cpu_rows.sum));
  cross_entropy_rescale(stream, cpu_rows.max, all_max, sum);
  cpu::cross_entropy_rescale(cpu_stream, cpu_rows.max, all_max, cpu_sum);
  EXPECT_LT(test::relative_error(to_floats(sum), to_floats(cpu_sum)), 1e-6);

  cross_entropy_losses(stream, targets, cpu_rows.max, cpu_rows.sum, cpu_rows.target, rows.losses);
  cpu::cross_entropy_losses(cpu_stream, targets, cpu_rows.max, cpu_rows.sum, cpu_rows.target,
                            cpu_rows.losses);
  EXPECT_LT(test::relative_error(to_floats(rows.losses), to_floats(cpu_rows.losses)), 1e-6);

  cross_entropy_backward(stream, logits, targets, kFirst, cpu_rows.max, cpu_rows.sum, 0.5f,
                         dlogits);
  cpu::cross_entropy_backward(cpu_stream, logits, targets, kFirst, cpu_rows.max, cpu_rows.sum, 0.5f,
                              cpu_dlogits);
  EXPECT_LT(test::relative_error(to_floats(dlogits), to_floats(cpu_dlogits)),
            dlogits.dtype() == DType::f32 ? 1e-6 : 1e-2);
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, CrossEntropyAgreementTest,
                         testing::Combine(testing::Values(1, 31, 33, 256, 257, 4100),
                                          testing::Values(DType::f32, DType::bf16)));

}  // namespace
}  // namespace switchyard
