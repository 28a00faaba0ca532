#include "kernels/decode/lsh_sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bitset>
#include <cmath>
#include <numbers>
#include <ostream>
#include <random>
#include <vector>

#include "kernels/inline/lsh_probability.h"
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

// ---- The probability ---------------------------------------------------------------------------

// The share of draws of all tables in which at least two agree.
double simulated(double p, int bits, int tables) {
  std::mt19937 engine(5);
  std::bernoulli_distribution agrees(p);
  constexpr int kDraws = 40000;
  int sampled = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    int shared = 0;
    for (int t = 0; t < tables; ++t) {
      bool all = true;
      for (int b = 0; b < bits; ++b) all = agrees(engine) && all;
      shared += all;
    }
    sampled += shared >= 2;
  }
  return static_cast<double>(sampled) / kDraws;
}

TEST(LshProbability, IsThatOfTwoSharedBuckets) {
  EXPECT_NEAR(lsh_probability(0.5, 1, 2), 0.25, 1e-15);
  EXPECT_NEAR(lsh_probability(0.5, 1, 3), 0.5, 1e-15);
  for (const auto& [p, bits, tables] :
       {std::tuple{0.6, 2, 5}, {0.8, 4, 9}, {0.9, 10, 20}, {0.3, 1, 6}}) {
    EXPECT_NEAR(lsh_probability(p, bits, tables), simulated(p, bits, tables), 0.01)
        << p << " " << bits << " " << tables;
  }
}

TEST(LshProbability, EndsAtZeroAndOne) {
  EXPECT_EQ(lsh_probability(0.0, 10, 150), 0.0);
  EXPECT_EQ(lsh_probability(1.0, 10, 150), 1.0);
  for (double p = 0.0; p < 1.0; p += 0.001) EXPECT_GE(lsh_probability(p, 10, 150), 0.0) << p;
}

// The paper's settings sample an orthogonal key in about one of 100 cases.
TEST(LshProbability, OfThePapersSettings) {
  EXPECT_NEAR(lsh_probability(0.5, 10, 150), 0.0096837, 1e-7);
  EXPECT_NEAR(lsh_probability(0.7, 10, 150), 0.9271320, 1e-7);
}

// ---- Log weights -------------------------------------------------------------------------------

struct Case {
  int64_t batch, heads, kv_heads, max_len, head_dim, tables;
  DType dtype = DType::f32;

  int64_t group() const { return heads / kv_heads; }
  int64_t words() const { return (tables + 1) / 2; }
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.batch << "x" << c.heads << "/" << c.kv_heads << "x" << c.max_len << "x"
             << c.head_dim << "_" << c.tables << "_" << to_string(c.dtype);
}

const Case kCases[] = {{1, 1, 1, 1, 8, 2},
                       {2, 4, 2, 33, 16, 5},
                       {1, 2, 2, 257, 33, 40},
                       {2, 3, 1, 1030, 8, 7},
                       {2, 4, 2, 65, 64, 6, DType::bf16}};
constexpr int kBits = 3;

struct Sampling {
  explicit Sampling(const Case& shape)
      : c(shape),
        q(random_tensor({c.batch, c.heads, c.head_dim}, 1, c.dtype)),
        k(random_tensor({c.batch, c.kv_heads, c.max_len, c.head_dim}, 2, c.dtype)),
        mean(random_tensor({c.batch, c.kv_heads, c.head_dim}, 3, DType::f32, 0.5f)),
        q_codes({c.batch, c.heads, c.words()}, DType::i32),
        codes({c.batch, c.kv_heads, c.max_len, c.words()}, DType::i32) {
    // Few of the 2^16 buckets are used, and the unused half of a last word is filled, too: what
    // lies there must not count.
    std::mt19937 engine(4);
    std::uniform_int_distribution<uint32_t> bucket(0, 7);
    for (Tensor* tensor : {&q_codes, &codes}) {
      for (int64_t i = 0; i < tensor->num_elements(); ++i) {
        const uint32_t high =
            c.tables % 2 == 1 && i % c.words() == c.words() - 1 ? 0x1234u : bucket(engine) << 13;
        tensor->data<int32_t>()[i] = static_cast<int32_t>(high << 16 | bucket(engine) << 3);
      }
    }
    for (int64_t b = 0; b < c.batch; ++b) {
      lengths.push_back(static_cast<int32_t>(std::max<int64_t>(c.max_len - b, 1)));
    }
    tables = {.bits = kBits,
              .tables = c.tables,
              .begin = std::min<int64_t>(2, c.max_len),
              .end = std::max<int64_t>(c.max_len - 4, 0)};
  }

  int64_t collisions(int64_t head, int64_t key) const {
    int64_t count = 0;
    for (int64_t t = 0; t < c.tables; ++t) {
      const auto half = [&](const Tensor& from, int64_t row) {
        const auto word = static_cast<uint32_t>(from.data<int32_t>()[row * c.words() + t / 2]);
        return t % 2 == 0 ? word & 0xffffu : word >> 16;
      };
      count += half(q_codes, head) == half(codes, key);
    }
    return count;
  }

  double angle(const std::vector<float>& qs, const std::vector<float>& ks, int64_t head,
               int64_t key) const {
    double product = 0.0, q2 = 0.0, k2 = 0.0;
    for (int64_t i = 0; i < c.head_dim; ++i) {
      const double x = qs[static_cast<size_t>(head * c.head_dim + i)];
      const double y = static_cast<double>(ks[static_cast<size_t>(key * c.head_dim + i)]) -
                       mean.data<float>()[head / c.group() * c.head_dim + i];
      product += x * y;
      q2 += x * x;
      k2 += y * y;
    }
    return std::acos(product / std::sqrt(q2 * k2));
  }

  Case c;
  Stream stream;
  Tensor q, k, mean, q_codes, codes;
  std::vector<int32_t> lengths;
  LshTables tables;
};

class LshSamplingTest : public testing::TestWithParam<Case> {};

TEST_P(LshSamplingTest, KeysThatShareTwoBucketsAreWeightedByTheirProbability) {
  const Case& c = GetParam();
  Sampling s(c);
  Tensor log_weights({c.batch, c.heads, c.max_len}, DType::f32);
  std::fill_n(log_weights.data<float>(), log_weights.num_elements(), 77.0f);

  lsh_log_weights(s.stream, s.q, s.q_codes, s.k, s.mean, s.codes, make_tensor({c.batch}, s.lengths),
                  s.tables, log_weights);

  const std::vector<float> qs = to_floats(s.q), ks = to_floats(s.k);
  const std::vector<float> actual = to_floats(log_weights);
  int sampled = 0, left_out = 0;
  for (int64_t head = 0; head < c.batch * c.heads; ++head) {
    for (int64_t p = 0; p < c.max_len; ++p) {
      const float weight = actual[static_cast<size_t>(head * c.max_len + p)];
      const int64_t key = head / c.group() * c.max_len + p;
      if (p >= s.lengths[static_cast<size_t>(head / c.heads)]) {
        EXPECT_EQ(weight, 77.0f);
      } else if (p < s.tables.begin || p >= s.tables.end) {
        EXPECT_EQ(weight, 0.0f);
      } else if (s.collisions(head, key) < 2) {
        EXPECT_EQ(weight, -INFINITY);
        ++left_out;
      } else {
        const double a = std::pow(1.0 - s.angle(qs, ks, head, key) / std::numbers::pi, kBits);
        const double u = 1.0 - std::pow(1.0 - a, c.tables) -
                         static_cast<double>(c.tables) * a *
                             std::pow(1.0 - a, static_cast<double>(c.tables - 1));
        EXPECT_NEAR(weight, -std::log(u + 1e-4), 1e-4) << "head " << head << ", key " << p;
        ++sampled;
      }
    }
  }
  if (c.max_len > 30) {
    EXPECT_GT(sampled, 0);
    EXPECT_GT(left_out, 0);
  }
}

TEST_P(LshSamplingTest, ListsHoldTheKeysOfAllHeadsOfTheGroup) {
  const Case& c = GetParam();
  Stream stream;
  Tensor log_weights = random_tensor({c.batch, c.heads, c.max_len}, 6);
  for (int64_t i = 0; i < log_weights.num_elements(); ++i) {
    const int64_t head = i / c.max_len, p = i % c.max_len;
    // All heads keep the first key; the first head of a sequence keeps all of them.
    if (p % 7 != 0 && (p * (head % c.heads)) % 5 != 0) log_weights.data<float>()[i] = -INFINITY;
  }
  std::vector<int32_t> lengths;
  for (int64_t b = 0; b < c.batch; ++b) {
    lengths.push_back(static_cast<int32_t>(std::max<int64_t>(c.max_len - 3 * b, 1)));
  }
  const int64_t stride = c.max_len + 1;
  Tensor indices({c.batch, c.kv_heads, stride}, DType::i32), counts({c.batch}, DType::i32);
  Tensor selected({c.batch, c.heads, stride}, DType::f32);

  list_weighted(stream, log_weights, make_tensor({c.batch}, lengths), indices, counts, selected);

  const std::vector<float> weights = to_floats(selected);
  const auto lists = to_vector<int32_t>(indices), longest = to_vector<int32_t>(counts);
  for (int64_t b = 0; b < c.batch; ++b) {
    int64_t most = 0;
    for (int64_t row = b * c.kv_heads; row < (b + 1) * c.kv_heads; ++row) {
      const auto at = [&](int64_t head, int64_t p) {
        return log_weights.data<float>()[head * c.max_len + p];
      };
      int64_t count = 0;
      for (int64_t p = 0; p < lengths[static_cast<size_t>(b)]; ++p) {
        bool listed = false;
        for (int64_t g = 0; g < c.group(); ++g) {
          listed = listed || at(row * c.group() + g, p) > -INFINITY;
        }
        if (!listed) continue;
        EXPECT_EQ(lists[static_cast<size_t>(row * stride + count)], p);
        for (int64_t head = row * c.group(); head < (row + 1) * c.group(); ++head) {
          EXPECT_EQ(weights[static_cast<size_t>(head * stride + count)], at(head, p));
        }
        ++count;
      }
      most = std::max(most, count);
      for (; count < stride; ++count) {
        EXPECT_EQ(lists[static_cast<size_t>(row * stride + count)], 0);
        for (int64_t head = row * c.group(); head < (row + 1) * c.group(); ++head) {
          EXPECT_EQ(weights[static_cast<size_t>(head * stride + count)], -INFINITY);
        }
      }
    }
    EXPECT_EQ(longest[static_cast<size_t>(b)], most);
  }
}

INSTANTIATE_TEST_SUITE_P(All, LshSamplingTest, testing::ValuesIn(kCases));

TEST(LshSampling, ATableHasAtMost16Bits) {
  Sampling s(kCases[1]);
  s.tables.bits = 17;
  Tensor log_weights({2, 4, 33}, DType::f32);

  EXPECT_THAT(
      [&] {
        lsh_log_weights(s.stream, s.q, s.q_codes, s.k, s.mean, s.codes,
                        make_tensor({int64_t{2}}, s.lengths), s.tables, log_weights);
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("tables of 17 bits")));
}

}  // namespace
}  // namespace switchyard
