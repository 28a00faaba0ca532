// f32 products by bf16 products of terms.
#include "kernels/linear/split_bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;

// Values of many magnitudes and of both signs.
Tensor values(int64_t rows, int64_t columns) {
  Tensor x = random_tensor({rows, columns}, 1);
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    x.data<float>()[i] *= std::ldexp(1.0f, static_cast<int>(i * 7 % 60) - 30);
  }
  x.data<float>()[0] = 0.0f;
  return x;
}

TEST(SplitBf16Test, TheTermsAddUpToEveryBit) {
  Stream stream;
  const Tensor x = values(33, 31);
  Tensor above({99, 31}, DType::bf16), beside({33, 93}, DType::bf16);

  split_bf16(stream, x, kAllTerms, above);
  split_bf16(stream, x, kAllTerms, beside);

  const std::vector<float> whole = to_floats(x), a = to_floats(above), b = to_floats(beside);
  for (size_t i = 0; i < whole.size(); ++i) {
    const size_t row = i / 31, column = i % 31;
    const double sum = double{a[i]} + a[whole.size() + i] + a[2 * whole.size() + i];
    EXPECT_EQ(sum, double{whole[i]});
    for (size_t part = 0; part < 3; ++part) {
      EXPECT_EQ(b[row * 93 + part * 31 + column], a[part * whole.size() + i]);
    }
  }
}

TEST(SplitBf16Test, TermsStandInTheOrderThatWasAskedFor) {
  Stream stream;
  const Tensor x = values(5, 8);
  Tensor all({15, 8}, DType::bf16), some({15, 8}, DType::bf16);

  split_bf16(stream, x, kAllTerms, all);
  split_bf16(stream, x, {Term::hi, Term::hi, Term::mid}, some);

  const std::vector<float> a = to_floats(all), s = to_floats(some);
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(s[i], a[i]);
    EXPECT_EQ(s[40 + i], a[i]);
    EXPECT_EQ(s[80 + i], a[40 + i]);
  }
}

TEST(SplitBf16Test, JoiningAddsThePartsToWhatIsThereOrReplacesIt) {
  Stream stream;
  const Tensor above = random_tensor({6, 5}, 1), beside = random_tensor({2, 15}, 2);
  Tensor y({2, 5}, DType::f32);

  join_terms(stream, above, Accumulate::no, y);
  join_terms(stream, beside, Accumulate::yes, y);

  const std::vector<float> a = to_floats(above), b = to_floats(beside), sums = to_floats(y);
  for (size_t i = 0; i < 10; ++i) {
    const size_t at = i / 5 * 15 + i % 5;
    EXPECT_EQ(sums[i], (a[i] + a[10 + i] + a[20 + i]) + (b[at] + b[at + 5] + b[at + 10]));
  }
}

// The error of an f32 product of the same length.
TEST(SplitBf16Test, AProductOfAllTermsIsAsExactAsOneInF32) {
  constexpr int64_t kTokens = 33, kWidth = 512, kExperts = 16;
  Stream stream;
  const Tensor x = random_tensor({kTokens, kWidth}, 1, DType::bf16);
  const Tensor weight = random_tensor({kExperts, kWidth}, 2);
  Tensor terms({3 * kExperts, kWidth}, DType::bf16), parts({kTokens, 3 * kExperts}, DType::f32);
  Tensor logits({kTokens, kExperts}, DType::f32);

  split_bf16(stream, weight, kAllTerms, terms);
  matmul(stream, x, Transpose::no, terms, Transpose::yes, Accumulate::no, parts);
  join_terms(stream, parts, Accumulate::no, logits);

  const std::vector<float> a = to_floats(x), w = to_floats(weight), seen = to_floats(logits);
  for (size_t i = 0; i < seen.size(); ++i) {
    double sum = 0.0, size = 0.0;
    for (size_t k = 0; k < kWidth; ++k) {
      const double term = double{a[i / kExperts * kWidth + k]} * w[i % kExperts * kWidth + k];
      sum += term;
      size += std::abs(term);
    }
    EXPECT_NEAR(seen[i], sum, 2e-7 * size);
  }
}

}  // namespace
}  // namespace switchyard
