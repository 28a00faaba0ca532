#include "kernels/decode/key_scores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>
#include <vector>

#include "kernels/decode/page_bounds.h"
#include "kernels/runtime/check.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::Stream;
using test::Tensor;
using test::to_floats;

struct Case {
  int64_t batch, heads, kv_heads, max_len, width;
  std::vector<int32_t> lengths;
  DType dtype = DType::f32;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.batch << "x" << c.heads << "/" << c.kv_heads << "x" << c.max_len << "x" << c.width
             << "_" << to_string(c.dtype);
}

const Case kCases[] = {{1, 1, 1, 1, 1, {1}},
                       {2, 4, 2, 33, 32, {31, 33}},
                       {1, 2, 2, 257, 33, {257}},
                       {2, 3, 1, 130, 128, {1, 130}},
                       {2, 4, 2, 257, 64, {256, 17}, DType::bf16}};

// The value of scores that an op must not write.
constexpr float kUntouched = -777.0f;

Tensor untouched_scores(const Case& c) {
  Tensor scores({c.batch, c.kv_heads, c.max_len}, DType::f32);
  std::fill_n(scores.data<float>(), scores.num_elements(), kUntouched);
  return scores;
}

// Expects value(row, g, p) summed over the group, for every (sequence, kv head) and position.
template <class Value>
void expect_scores(const Case& c, const Tensor& scores, double bound, const Value& value) {
  const std::vector<float> actual = to_floats(scores);
  for (int64_t row = 0; row < c.batch * c.kv_heads; ++row) {
    for (int64_t p = 0; p < c.max_len; ++p) {
      const float score = actual[static_cast<size_t>(row * c.max_len + p)];
      if (p >= c.lengths[static_cast<size_t>(row / c.kv_heads)]) {
        EXPECT_EQ(score, kUntouched);
        continue;
      }
      double expected = 0.0;
      for (int64_t g = 0; g < c.heads / c.kv_heads; ++g) expected += value(row, g, p);
      EXPECT_NEAR(score, expected, bound) << "row " << row << ", position " << p;
    }
  }
}

class KeyScoresTest : public testing::TestWithParam<Case> {};

TEST_P(KeyScoresTest, AreProductsSummedOverTheGroup) {
  const Case& c = GetParam();
  Stream stream;
  const Tensor q = random_tensor({c.batch, c.heads, c.width}, 1, c.dtype);
  const Tensor keys = random_tensor({c.batch, c.kv_heads, c.max_len, c.width}, 2, c.dtype);
  const Tensor lengths = make_tensor({c.batch}, c.lengths);
  Tensor scores = untouched_scores(c);

  key_scores(stream, q, keys, lengths, scores);

  const std::vector<float> qs = to_floats(q), ks = to_floats(keys);
  const int64_t group = c.heads / c.kv_heads;
  expect_scores(c, scores, 2e-4, [&](int64_t row, int64_t g, int64_t p) {
    double sum = 0.0;
    for (int64_t i = 0; i < c.width; ++i) {
      sum += static_cast<double>(qs[static_cast<size_t>((row * group + g) * c.width + i)]) *
             ks[static_cast<size_t>((row * c.max_len + p) * c.width + i)];
    }
    return sum;
  });
}

constexpr int64_t kPage = 16;

struct Bounds {
  explicit Bounds(const Case& c)
      : lower({c.batch, c.kv_heads, (c.max_len + kPage - 1) / kPage, c.width}, c.dtype),
        upper(lower.shape(), c.dtype) {}

  Tensor lower, upper;
};

// Positions [first, first + count) of a cache.
Tensor part_of(const Tensor& keys, int64_t first, int64_t count) {
  const Shape& s = keys.shape();
  const std::vector<float> all = to_floats(keys);
  Tensor part({s[0], s[1], count, s[3]}, keys.dtype());
  for (int64_t head = 0; head < s[0] * s[1]; ++head) {
    for (int64_t i = 0; i < count * s[3]; ++i) {
      const float value = all[static_cast<size_t>((head * s[2] + first) * s[3] + i)];
      const int64_t at = head * count * s[3] + i;
      if (keys.dtype() == DType::bf16) {
        part.data<bfloat16>()[at] = bfloat16(value);
      } else {
        part.data<float>()[at] = value;
      }
    }
  }
  return part;
}

class PageBoundsTest : public testing::TestWithParam<Case> {};

TEST_P(PageBoundsTest, ScoresAreTheBoundOfThePageAndNoProductIsGreater) {
  const Case& c = GetParam();
  Stream stream;
  const Tensor q = random_tensor({c.batch, c.heads, c.width}, 1, c.dtype);
  const Tensor keys = random_tensor({c.batch, c.kv_heads, c.max_len, c.width}, 2, c.dtype);
  const Tensor lengths = make_tensor({c.batch}, c.lengths);
  Tensor scores = untouched_scores(c), products = untouched_scores(c);
  Bounds bounds(c);

  update_page_bounds(stream, keys, 0, kPage, bounds.lower, bounds.upper);
  page_scores(stream, q, bounds.lower, bounds.upper, lengths, kPage, scores);

  const std::vector<float> qs = to_floats(q), ks = to_floats(keys);
  const int64_t group = c.heads / c.kv_heads;
  expect_scores(c, scores, 4e-4, [&](int64_t row, int64_t g, int64_t p) {
    double sum = 0.0;
    for (int64_t i = 0; i < c.width; ++i) {
      float low = INFINITY, high = -INFINITY;
      const int64_t begin = p / kPage * kPage;
      for (int64_t k = begin; k < std::min(begin + kPage, c.max_len); ++k) {
        const float value = ks[static_cast<size_t>((row * c.max_len + k) * c.width + i)];
        low = std::min(low, value);
        high = std::max(high, value);
      }
      const double x = qs[static_cast<size_t>((row * group + g) * c.width + i)];
      sum += std::max(x * low, x * high);
    }
    return sum;
  });
  key_scores(stream, q, keys, lengths, products);
  const std::vector<float> upper = to_floats(scores), product = to_floats(products);
  for (size_t i = 0; i < upper.size(); ++i) EXPECT_GE(upper[i], product[i] - 1e-3f);
}

TEST_P(PageBoundsTest, KeyByKeyGivesTheBitsOfAllAtOnce) {
  const Case& c = GetParam();
  Stream stream;
  const Tensor keys = random_tensor({c.batch, c.kv_heads, c.max_len, c.width}, 2, c.dtype);
  Bounds at_once(c), one_by_one(c);

  update_page_bounds(stream, keys, 0, kPage, at_once.lower, at_once.upper);
  // The prompt ends within a page where the cache is long enough; then keys follow one by one.
  const int64_t prompt = std::min<int64_t>(21, c.max_len);
  update_page_bounds(stream, part_of(keys, 0, prompt), 0, kPage, one_by_one.lower,
                     one_by_one.upper);
  for (int64_t p = prompt; p < c.max_len; ++p) {
    update_page_bounds(stream, part_of(keys, p, 1), p, kPage, one_by_one.lower, one_by_one.upper);
  }

  EXPECT_EQ(to_floats(one_by_one.lower), to_floats(at_once.lower));
  EXPECT_EQ(to_floats(one_by_one.upper), to_floats(at_once.upper));
}

TEST(PageBounds, APageBeginsAnewWithItsFirstKey) {
  Stream stream;
  Tensor lower = make_tensor<float>({1, 1, 1, 2}, {-50.0f, -50.0f});
  Tensor upper = make_tensor<float>({1, 1, 1, 2}, {50.0f, 50.0f});

  update_page_bounds(stream, make_tensor<float>({1, 1, 1, 2}, {1.0f, -2.0f}), 0, kPage, lower,
                     upper);

  EXPECT_EQ(to_floats(lower), (std::vector<float>{1.0f, -2.0f}));
  EXPECT_EQ(to_floats(upper), (std::vector<float>{1.0f, -2.0f}));
}

TEST(PageBounds, RejectsAPositionBeyondThePages) {
  Stream stream;
  Tensor lower({1, 1, 2, 4}, DType::f32), upper({1, 1, 2, 4}, DType::f32);
  const Tensor k({1, 1, 1, 4}, DType::f32);

  EXPECT_THAT([&] { update_page_bounds(stream, k, 32, kPage, lower, upper); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("hold no position 32")));
}

TEST(KeyScores, RejectsALengthBeyondTheCache) {
  SWITCHYARD_CPU_ONLY("what tensors hold is checked where the host can see it");
  Stream stream;
  const Tensor q({1, 1, 4}, DType::f32), keys({1, 1, 8, 4}, DType::f32);
  Tensor scores({1, 1, 8}, DType::f32);

  EXPECT_THAT(
      [&] { key_scores(stream, q, keys, make_tensor({1}, std::vector<int32_t>{9}), scores); },
      testing::ThrowsMessage<Error>(testing::HasSubstr("lengths[0] is 9")));
}

INSTANTIATE_TEST_SUITE_P(All, KeyScoresTest, testing::ValuesIn(kCases));
INSTANTIATE_TEST_SUITE_P(All, PageBoundsTest, testing::ValuesIn(kCases));

}  // namespace
}  // namespace switchyard
