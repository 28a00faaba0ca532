// Each op of hash-aware decoding against brute force in double or integers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>
#include <ostream>
#include <random>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/decode/gather_attention.h"
#include "kernels/decode/hamming_scores.h"
#include "kernels/decode/hash_encode.h"
#include "kernels/decode/select_top_k.h"
#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::relative_error;
using test::Stream;
using test::Tensor;
using test::to_floats;
using test::to_vector;
using test::Workspace;

struct Case {
  int64_t batch, heads, kv_heads, max_len, head_dim, bits;
  DType dtype = DType::f32;

  int64_t group() const { return heads / kv_heads; }
  int64_t words() const { return bits / 32; }
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.batch << "x" << c.heads << "/" << c.kv_heads << "x" << c.max_len << "x"
             << c.head_dim << "_" << c.bits << "_" << to_string(c.dtype);
}

const Case kCases[] = {{1, 1, 1, 1, 1, 32},    {2, 4, 2, 33, 32, 128},
                       {1, 3, 3, 257, 33, 96}, {2, 6, 1, 70, 64, 256},
                       {1, 2, 2, 100, 16, 64}, {2, 4, 2, 257, 128, 128, DType::bf16}};

HashProjection signs(const Tensor& weight) {
  return {.keys = weight, .queries = {}, .thresholds = {}};
}

// ---- hash_encode -------------------------------------------------------------------------------

struct Encoded {
  explicit Encoded(const Case& c)
      : q(random_tensor({c.batch, c.heads, 1, c.head_dim}, 1, c.dtype)),
        k(random_tensor({c.batch, c.kv_heads, c.max_len, c.head_dim}, 2, c.dtype)),
        weight(random_tensor({c.kv_heads, c.head_dim, c.bits}, 3)),
        q_codes({c.batch, c.heads, 1, c.words()}, DType::i32),
        codes({c.batch, c.kv_heads, c.max_len, c.words()}, DType::i32),
        norms({c.batch, c.kv_heads, c.max_len}, DType::f32) {}

  void encode() { hash_encode(stream, q, k, signs(weight), 0, q_codes, codes, norms); }

  Stream stream;
  Tensor q, k, weight, q_codes, codes, norms;
};

// Compares the bits of `codes` with signs in double, except within a band around zero as wide as
// the rounding error of a sum of head_dim products in f32.
//   x      [rows, head_dim], row r of the projection head_of(r)
void expect_signs(const Case& c, const Tensor& x, const Tensor& weight,
                  const std::vector<int32_t>& codes,
                  const std::function<int64_t(int64_t)>& head_of) {
  const std::vector<float> xs = to_floats(x), ws = to_floats(weight);
  const auto dim = static_cast<size_t>(c.head_dim), bits = static_cast<size_t>(c.bits);
  size_t within_band = 0;
  for (size_t row = 0; row < xs.size() / dim; ++row) {
    const float* w =
        ws.data() + static_cast<size_t>(head_of(static_cast<int64_t>(row))) * dim * bits;
    for (size_t j = 0; j < bits; ++j) {
      double sum = 0.0, size = 0.0;
      for (size_t i = 0; i < dim; ++i) {
        const double product = static_cast<double>(xs[row * dim + i]) * w[i * bits + j];
        sum += product;
        size += std::abs(product);
      }
      const auto word = static_cast<uint32_t>(codes[row * (bits / 32) + j / 32]);
      if (std::abs(sum) < 1e-6 * size) {
        ++within_band;
        continue;
      }
      ASSERT_EQ(word >> j % 32 & 1u, sum > 0.0 ? 1u : 0u) << "row " << row << ", bit " << j;
    }
  }
  EXPECT_LE(within_band, 1 + xs.size() / dim * bits / 1000);
}

class HashEncodeTest : public testing::TestWithParam<Case> {};

TEST_P(HashEncodeTest, BitsAreSignsOfTheProjection) {
  const Case& c = GetParam();
  Encoded e(c);

  e.encode();

  expect_signs(c, e.k, e.weight, to_vector<int32_t>(e.codes),
               [&](int64_t row) { return row / c.max_len % c.kv_heads; });
  expect_signs(c, e.q, e.weight, to_vector<int32_t>(e.q_codes),
               [&](int64_t row) { return row % c.heads / c.group(); });
}

TEST_P(HashEncodeTest, NormsAreLengthsOfKeys) {
  const Case& c = GetParam();
  Encoded e(c);

  e.encode();

  const std::vector<float> keys = to_floats(e.k), norms = to_floats(e.norms);
  const auto dim = static_cast<size_t>(c.head_dim);
  for (size_t row = 0; row < norms.size(); ++row) {
    const double square = std::inner_product(keys.begin() + static_cast<int64_t>(row * dim),
                                             keys.begin() + static_cast<int64_t>((row + 1) * dim),
                                             keys.begin() + static_cast<int64_t>(row * dim), 0.0);
    EXPECT_NEAR(norms[row], std::sqrt(square), 1e-4);
  }
}

TEST_P(HashEncodeTest, ANewKeyChangesItsPositionAlone) {
  const Case& c = GetParam();
  Encoded e(c);
  e.encode();
  std::vector<int32_t> expected = to_vector<int32_t>(e.codes);
  const int64_t position = c.max_len / 2;
  const Tensor k = random_tensor({c.batch, c.kv_heads, 1, c.head_dim}, 9, c.dtype);
  Tensor alone({c.batch, c.kv_heads, 1, c.words()}, DType::i32);

  hash_encode(e.stream, {}, k, signs(e.weight), position, {}, e.codes, {});

  hash_encode(e.stream, {}, k, signs(e.weight), 0, {}, alone, {});
  const std::vector<int32_t> fresh = to_vector<int32_t>(alone);
  for (int64_t row = 0; row < c.batch * c.kv_heads; ++row) {
    std::copy_n(fresh.begin() + row * c.words(), c.words(),
                expected.begin() + (row * c.max_len + position) * c.words());
  }
  EXPECT_EQ(to_vector<int32_t>(e.codes), expected);
}

TEST(HashEncode, ZeroIsBitZeroAndBitsLieInTheOrderOfColumns) {
  Stream stream;
  Tensor weight({1, 2, 64}, DType::f32), codes({1, 1, 1, 2}, DType::i32);
  weight.data<float>()[0] = 1.0f;        // column 0: 3
  weight.data<float>()[33] = 2.0f;       // column 33: 6
  weight.data<float>()[34] = -2.0f;      // column 34: -6
  weight.data<float>()[64 + 31] = 1.0f;  // column 31: 5
  // All others are 0.

  hash_encode(stream, {}, make_tensor<float>({1, 1, 1, 2}, {3.0f, 5.0f}), signs(weight), 0, {},
              codes, {});

  EXPECT_EQ(to_vector<int32_t>(codes),
            (std::vector<int32_t>{static_cast<int32_t>(0x80000001u), 2}));
}

TEST(HashEncode, RejectsAPositionBeyondTheCacheAndBitsThatFillNoWord) {
  Stream stream;
  const Tensor k({1, 1, 2, 4}, DType::f32), weight({1, 4, 32}, DType::f32);
  Tensor codes({1, 1, 3, 1}, DType::i32);

  EXPECT_THAT([&] { hash_encode(stream, {}, k, signs(weight), 2, {}, codes, {}); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("holds 3 positions, 4 are needed")));
  EXPECT_THAT(
      [&] {
        const Tensor odd({1, 4, 48}, DType::f32);
        hash_encode(stream, {}, k, signs(odd), 0, {}, codes, {});
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("a code has 48 columns")));
}

// ---- hash_encode, planes -----------------------------------------------------------------------

struct Planes : Encoded {
  explicit Planes(const Case& c, int64_t planes_of_key = 1)
      : Encoded(c),
        key_planes(planes_of_key),
        query_weight(random_tensor({c.kv_heads, c.head_dim, c.bits}, 4)),
        thresholds(random_tensor({c.kv_heads, c.bits}, 5)),
        planes({c.batch, c.kv_heads * kQueryPlanes, 1, c.words()}, DType::i32),
        key_codes({c.batch, c.kv_heads, c.max_len, planes_of_key * c.words()}, DType::i32) {}

  HashProjection projection() const {
    return {.keys = weight,
            .queries = query_weight,
            .thresholds = thresholds,
            .key_planes = key_planes};
  }
  void encode() { hash_encode(stream, q, k, projection(), 0, planes, key_codes, norms); }

  int64_t key_planes;
  Tensor query_weight, thresholds, planes, key_codes;
};

// x W - t of every row, in double.
//   x  [rows, head_dim], row r of the projection head_of(r); t may be empty
std::vector<double> projected(const Case& c, const std::vector<double>& x,
                              const std::vector<float>& w, const std::vector<float>& t,
                              const std::function<int64_t(int64_t)>& head_of) {
  const auto dim = static_cast<size_t>(c.head_dim), bits = static_cast<size_t>(c.bits);
  std::vector<double> result;
  for (size_t row = 0; row < x.size() / dim; ++row) {
    const auto head = static_cast<size_t>(head_of(static_cast<int64_t>(row)));
    for (size_t j = 0; j < bits; ++j) {
      double sum = t.empty() ? 0.0 : -t[head * bits + j];
      for (size_t i = 0; i < dim; ++i) sum += x[row * dim + i] * w[(head * dim + i) * bits + j];
      result.push_back(sum);
    }
  }
  return result;
}

// The level of column j that planes of `columns` bits hold, plane after plane.
int level_of(const std::vector<int32_t>& words, size_t first, size_t planes, size_t columns,
             size_t j) {
  int level = 0;
  for (size_t p = 0; p < planes; ++p) {
    const auto word = static_cast<uint32_t>(words[first + (p * columns + j) / 32]);
    level += static_cast<int>(word >> j % 32 & 1u) << p;
  }
  return level;
}

TEST_P(HashEncodeTest, KeysBeyondTheirThresholdsHaveLevelsAndTheirLengths) {
  const Case& c = GetParam();
  for (const size_t planes : {1, 2, 3, 4}) {
    SCOPED_TRACE(planes);
    Planes e(c, static_cast<int64_t>(planes));

    e.encode();

    const std::vector<float> keys = to_floats(e.k);
    const std::vector<double> x =
        projected(c, {keys.begin(), keys.end()}, to_floats(e.weight), to_floats(e.thresholds),
                  [&](int64_t row) { return row / c.max_len % c.kv_heads; });
    const auto codes = to_vector<int32_t>(e.key_codes);
    const std::vector<float> norms = to_floats(e.norms);
    const auto columns = static_cast<size_t>(c.bits);
    const int highest = (1 << planes) - 1;
    for (size_t row = 0; row < norms.size(); ++row) {
      double square = 0.0, product = 0.0;
      for (size_t j = 0; j < columns; ++j) square += std::pow(x[row * columns + j], 2);
      const double step = std::array{1.596, 0.9957, 0.5860, 0.3352}[planes - 1] *
                          std::sqrt(square / static_cast<double>(columns));
      for (size_t j = 0; j < columns; ++j) {
        const double value = x[row * columns + j];
        const int level = level_of(codes, row * planes * columns / 32, planes, columns, j);
        const int v = 2 * level - highest;
        product += value * v;
        // Half a step away, or a little more where rounding chose the neighbour; values beyond
        // the first and the last level have these.
        const double last_edge = (std::pow(2.0, static_cast<double>(planes) - 1.0) - 1.0) * step;
        const bool is_beyond = (level == 0 && value <= 1e-4 - last_edge) ||
                               (level == highest && value >= last_edge - 1e-4);
        const double away = std::abs(value - step / 2.0 * v);
        ASSERT_TRUE(away <= step / 2.0 + 1e-4 || is_beyond)
            << "row " << row << ", column " << j << ": " << value << " is " << v
            << " half steps of " << step;
      }
      EXPECT_NEAR(norms[row], square / product, 1e-4 * square / product) << "row " << row;
    }
  }
}

TEST(HashEncode, AKeyAtItsThresholdsHasNoLength) {
  Stream stream;
  const Tensor weight = random_tensor({1, 4, 32}, 1), thresholds({1, 32}, DType::f32);
  const Tensor k({1, 1, 1, 4}, DType::f32);
  for (const int64_t planes : {1, 2}) {
    Tensor codes({1, 1, 1, planes}, DType::i32), norms({1, 1, 1}, DType::f32);
    norms.data<float>()[0] = 7.0f;
    hash_encode(stream, {}, k,
                {.keys = weight, .queries = weight, .thresholds = thresholds, .key_planes = planes},
                0, {}, codes, norms);
    EXPECT_EQ(to_floats(norms), std::vector<float>{0.0f});
  }
}

TEST(HashEncode, KeysHaveOneToFourBitsOfEachColumnAndSignsHaveOne) {
  Stream stream;
  const Tensor k({1, 1, 2, 4}, DType::f32), weight({1, 4, 32}, DType::f32);
  const Tensor thresholds({1, 32}, DType::f32);
  const auto error_with = [&](HashProjection hash, int64_t planes) {
    hash.key_planes = planes;
    return test::error_of([&] {
      Tensor codes({1, 1, 3, std::max<int64_t>(planes, 1)}, DType::i32);
      hash_encode(stream, {}, k, hash, 0, {}, codes, {});
    });
  };
  const HashProjection planes{.keys = weight, .queries = weight, .thresholds = thresholds};
  EXPECT_EQ(error_with(planes, 4), "");
  EXPECT_THAT(error_with(planes, 5), testing::HasSubstr("keys have 5 bits of each column"));
  EXPECT_THAT(error_with(planes, 0), testing::HasSubstr("keys have 0 bits of each column"));
  EXPECT_THAT(error_with(signs(weight), 2), testing::HasSubstr("expected 1 to 1"));
}

// A column for every direction of a head, whole words, and no more than four bits of each.
TEST(HashEncode, BitsBeyondAHeadsWidthAreMorePlanes) {
  EXPECT_EQ(num_key_planes(32, 64), 1);
  EXPECT_EQ(num_key_planes(64, 64), 1);
  EXPECT_EQ(num_key_planes(96, 64), 1);
  EXPECT_EQ(num_key_planes(128, 64), 2);
  EXPECT_EQ(num_key_planes(192, 64), 3);
  EXPECT_EQ(num_key_planes(256, 64), 4);
  EXPECT_EQ(num_key_planes(512, 64), 4);
  EXPECT_EQ(num_key_planes(1024, 64), 4);
  EXPECT_EQ(num_key_planes(1280, 64), 2);  // four and three do not fit u16
  EXPECT_EQ(num_key_planes(4096, 64), 1);
  EXPECT_EQ(num_key_planes(128, 128), 1);
  EXPECT_EQ(num_key_planes(64, 16), 2);
  EXPECT_EQ(num_key_planes(32, 8), 1);
}

TEST_P(HashEncodeTest, PlanesAreTheGroupsSumInSixteenSteps) {
  const Case& c = GetParam();
  Planes e(c);

  e.encode();

  const std::vector<float> q = to_floats(e.q);
  const auto dim = static_cast<size_t>(c.head_dim), bits = static_cast<size_t>(c.bits);
  std::vector<double> sums(static_cast<size_t>(c.batch * c.kv_heads) * dim);
  for (size_t i = 0; i < q.size(); ++i) {
    sums[i / dim / static_cast<size_t>(c.group()) * dim + i % dim] += q[i];
  }
  const std::vector<double> y = projected(c, sums, to_floats(e.query_weight), {},
                                          [&](int64_t row) { return row % c.kv_heads; });
  const auto planes = to_vector<int32_t>(e.planes);
  for (size_t row = 0; row < y.size() / bits; ++row) {
    double most = 0.0;
    for (size_t j = 0; j < bits; ++j) most = std::max(most, std::abs(y[row * bits + j]));
    for (size_t j = 0; j < bits; ++j) {
      int level = 0;
      for (size_t p = 0; p < 4; ++p) {
        const auto word = static_cast<uint32_t>(planes[((row * 4 + p) * bits + j) / 32]);
        level += static_cast<int>(word >> j % 32 & 1u) << p;
      }
      const double step = most / 8.0, value = step / 2.0 * (2 * level - 15);
      // Half a step away, or a little more where rounding chose the neighbour.
      EXPECT_LE(std::abs(value - y[row * bits + j]), step / 2.0 * (1.0 + 1e-3))
          << "row " << row << ", column " << j;
    }
  }
}

// The positions of one head lie one after the other, each with its planes.
TEST(HashEncode, PlanesOfSeveralPositionsAreThoseOfEachAlone) {
  Stream stream;
  const Tensor weight = random_tensor({2, 8, 64}, 1), thresholds({2, 64}, DType::f32);
  const HashProjection hash{.keys = weight, .queries = weight, .thresholds = thresholds};
  const Tensor q = random_tensor({1, 4, 3, 8}, 2);
  Tensor all({1, 8, 3, 2}, DType::i32), alone({1, 8, 1, 2}, DType::i32);

  hash_encode(stream, q, {}, hash, 0, all, {}, {});

  const std::vector<int32_t> codes = to_vector<int32_t>(all);
  const std::vector<float> values = to_floats(q);
  for (size_t position = 0; position < 3; ++position) {
    std::vector<float> one;
    for (size_t head = 0; head < 4; ++head) {
      const auto from = values.begin() + static_cast<int64_t>((head * 3 + position) * 8);
      one.insert(one.end(), from, from + 8);
    }
    hash_encode(stream, make_tensor({1, 4, 1, 8}, one), {}, hash, 0, alone, {}, {});
    const std::vector<int32_t> expected = to_vector<int32_t>(alone);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(codes[(i / 2 * 3 + position) * 2 + i % 2], expected[i])
          << "position " << position << ", word " << i;
    }
  }
}

TEST(HashEncode, PlanesOfAQueryThatIsZeroAreAlike) {
  Stream stream;
  const Tensor weight = random_tensor({1, 4, 32}, 1), thresholds({1, 32}, DType::f32);
  const Tensor q({1, 1, 1, 4}, DType::f32);
  Tensor planes({1, 4, 1, 1}, DType::i32);

  hash_encode(stream, q, {}, {.keys = weight, .queries = weight, .thresholds = thresholds}, 0,
              planes, {}, {});

  EXPECT_EQ(to_vector<int32_t>(planes), (std::vector<int32_t>{0, 0, 0, -1}));
}

TEST(HashEncode, ProjectionsOfQueriesNeedThresholds) {
  Stream stream;
  const Tensor k({1, 1, 2, 4}, DType::f32), weight({1, 4, 32}, DType::f32);
  Tensor codes({1, 1, 3, 1}, DType::i32);

  EXPECT_THAT(
      [&] {
        hash_encode(stream, {}, k, {.keys = weight, .queries = weight, .thresholds = {}}, 0, {},
                    codes, {});
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("belong together")));
}

// ---- hamming_scores ----------------------------------------------------------------------------

Tensor random_codes(Shape shape, uint32_t seed) {
  std::mt19937 engine(seed);
  Tensor codes(shape, DType::i32);
  for (int64_t i = 0; i < codes.num_elements(); ++i) {
    codes.data<int32_t>()[i] = static_cast<int32_t>(engine());
  }
  return codes;
}

class HammingScoresTest : public testing::TestWithParam<Case> {};

TEST_P(HammingScoresTest, CountBitsThatDifferOverTheGroup) {
  const Case& c = GetParam();
  Stream stream;
  const Tensor q = random_codes({c.batch, c.heads, c.words()}, 1);
  const Tensor codes = random_codes({c.batch, c.kv_heads, c.max_len, c.words()}, 2);
  std::vector<int32_t> lengths;
  for (int64_t b = 0; b < c.batch; ++b) {
    lengths.push_back(static_cast<int32_t>(std::max<int64_t>(c.max_len - 7 * b, 1)));
  }
  Tensor distances({c.batch, c.kv_heads, c.max_len}, DType::u16);
  std::fill_n(distances.data<uint16_t>(), distances.num_elements(), uint16_t{65000});

  hamming_scores(stream, q, QueryCodes::signs, codes, make_tensor({c.batch}, lengths), distances);

  const auto actual = to_vector<uint16_t>(distances);
  const auto qs = to_vector<int32_t>(q), ks = to_vector<int32_t>(codes);
  for (int64_t row = 0; row < c.batch * c.kv_heads; ++row) {
    for (int64_t p = 0; p < c.max_len; ++p) {
      int expected = 0;
      for (int64_t g = 0; g < c.group(); ++g) {
        for (int64_t w = 0; w < c.words(); ++w) {
          expected += std::popcount(static_cast<uint32_t>(
              qs[static_cast<size_t>((row * c.group() + g) * c.words() + w)] ^
              ks[static_cast<size_t>((row * c.max_len + p) * c.words() + w)]));
        }
      }
      if (p >= lengths[static_cast<size_t>(row / c.kv_heads)]) expected = 65000;
      ASSERT_EQ(actual[static_cast<size_t>(row * c.max_len + p)], expected)
          << "row " << row << ", position " << p;
    }
  }
}

TEST_P(HammingScoresTest, PlanesCountByTheirPowersOfTwo) {
  const Case& c = GetParam();
  for (const int64_t of_key : {1, 2, 3, 4}) {
    SCOPED_TRACE(of_key);
    Stream stream;
    const Tensor planes = random_codes({c.batch, c.kv_heads * 4, c.words()}, 1);
    const Tensor codes = random_codes({c.batch, c.kv_heads, c.max_len, of_key * c.words()}, 2);
    const std::vector<int32_t> lengths(static_cast<size_t>(c.batch),
                                       static_cast<int32_t>(c.max_len));
    Tensor distances({c.batch, c.kv_heads, c.max_len}, DType::u16);

    hamming_scores(stream, planes, QueryCodes::planes, codes, make_tensor({c.batch}, lengths),
                   distances);

    // The identity that HashProjection states, with step 2.
    const auto actual = to_vector<uint16_t>(distances);
    const auto qs = to_vector<int32_t>(planes), ks = to_vector<int32_t>(codes);
    const int64_t highest = (1 << of_key) - 1;
    const auto columns = static_cast<size_t>(c.bits), planes_of_key = static_cast<size_t>(of_key);
    for (size_t row = 0; row < static_cast<size_t>(c.batch * c.kv_heads); ++row) {
      for (size_t k = 0; k < static_cast<size_t>(c.max_len); ++k) {
        const size_t key = row * static_cast<size_t>(c.max_len) + k;
        int64_t product = 0;
        for (size_t j = 0; j < columns; ++j) {
          const int level = level_of(qs, row * 4 * columns / 32, 4, columns, j);
          const int of =
              level_of(ks, key * planes_of_key * columns / 32, planes_of_key, columns, j);
          product += (2 * level - 15) * (2 * of - highest);
        }
        ASSERT_EQ(15 * highest * c.bits - 2 * actual[key], product)
            << "row " << row << ", position " << k;
      }
    }
  }
}

// Threads share heads in pieces of 4,096 positions.
TEST(HammingScores, LongCachesAreScoredToTheirLengthsAndNoFurther) {
  constexpr int64_t kMaxLen = 8200;
  const std::vector<int32_t> lengths = {4097, 8200};
  Stream stream;
  const Tensor q = random_codes({2, 8, 1}, 1), codes = random_codes({2, 2, kMaxLen, 1}, 2);
  const Tensor norms = random_tensor({2, 2, kMaxLen}, 3);
  Tensor distances({2, 2, kMaxLen}, DType::u16), scores({2, 2, kMaxLen}, DType::f32);
  std::fill_n(distances.data<uint16_t>(), distances.num_elements(), uint16_t{65000});
  std::fill_n(scores.data<float>(), scores.num_elements(), -777.0f);

  hamming_scores(stream, q, QueryCodes::planes, codes, make_tensor({2}, lengths), distances);
  key_norm_scores(stream, distances, norms, make_tensor({2}, lengths), /*weight=*/15,
                  /*columns=*/32, scores);

  const auto found = to_vector<uint16_t>(distances);
  const auto qs = to_vector<int32_t>(q), ks = to_vector<int32_t>(codes);
  const std::vector<float> scored = to_floats(scores), lengths_of_keys = to_floats(norms);
  for (size_t row = 0; row < 4; ++row) {
    for (size_t p = 0; p < kMaxLen; ++p) {
      const size_t key = row * kMaxLen + p;
      int distance = 0;
      for (size_t plane = 0; plane < 4; ++plane) {
        distance += std::popcount(static_cast<uint32_t>(qs[row * 4 + plane] ^ ks[key])) << plane;
      }
      const bool is_cached = p < static_cast<size_t>(lengths[row / 2]);
      ASSERT_EQ(found[key], is_cached ? distance : 65000) << "row " << row << ", position " << p;
      const double score = (15.0 - distance / 16.0) * lengths_of_keys[key];
      ASSERT_NEAR(scored[key], is_cached ? score : -777.0, 1e-4)
          << "row " << row << ", position " << p;
    }
  }
}

TEST(HammingScores, KeyNormScoresAreTheCosineEstimateTimesTheLength) {
  Stream stream;
  const Tensor distances = make_tensor<uint16_t>({1, 1, 3}, {0, 64, 200});
  const Tensor norms = make_tensor<float>({1, 1, 3}, {1.0f, 2.0f, 0.5f});
  Tensor scores({1, 1, 3}, DType::f32);

  key_norm_scores(stream, distances, norms, make_tensor<int32_t>({1}, {3}), /*weight=*/2,
                  /*columns=*/128, scores);

  EXPECT_EQ(to_floats(scores), (std::vector<float>{2.0f, 2.0f, -0.5625f}));
}

TEST(HammingScores, RejectsCodesThatAreNoPlanes) {
  Stream stream;
  const Tensor q({1, 3, 8}, DType::i32), codes({1, 1, 4, 8}, DType::i32);
  Tensor distances({1, 1, 4}, DType::u16);

  EXPECT_THAT(
      [&] {
        hamming_scores(stream, q, QueryCodes::planes, codes, make_tensor<int32_t>({1}, {4}),
                       distances);
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("3 codes of queries are not 4 planes")));
}

TEST(HammingScores, RejectsKeysOfAnotherNumberOfWords) {
  Stream stream;
  const Tensor q({1, 4, 2}, DType::i32);
  for (const int64_t words : {1, 5, 10}) {
    const Tensor codes({1, 1, 4, words}, DType::i32);
    Tensor distances({1, 1, 4}, DType::u16);
    EXPECT_NE(test::error_of([&] {
                hamming_scores(stream, q, QueryCodes::planes, codes, make_tensor<int32_t>({1}, {4}),
                               distances);
              }),
              "")
        << words;
  }
}

TEST(HammingScores, RejectsDistancesThatDoNotFit) {
  Stream stream;
  const Tensor q({1, 256, 8}, DType::i32), codes({1, 1, 4, 8}, DType::i32);
  Tensor distances({1, 1, 4}, DType::u16);

  EXPECT_THAT(
      [&] {
        hamming_scores(stream, q, QueryCodes::signs, codes, make_tensor<int32_t>({1}, {4}),
                       distances);
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("do not fit u16")));
}

// ---- select_top_k ------------------------------------------------------------------------------

struct Selection {
  std::vector<int32_t> lengths, counts;
  int64_t sink = 0, recent = 0;
};

// Brute force: a stable sort that puts the windows first.
template <class Better>
std::vector<int32_t> best_positions(int64_t length, int64_t count, int64_t sink, int64_t recent,
                                    const Better& better) {
  std::vector<int32_t> order(static_cast<size_t>(length));
  std::iota(order.rbegin(), order.rend(), 0);  // the most recent first
  const auto in_window = [&](int32_t p) { return p < sink || p >= length - recent; };
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) {
    if (in_window(a) || in_window(b)) return in_window(a) && !in_window(b);
    return better(a, b);
  });
  order.resize(static_cast<size_t>(count));
  std::ranges::sort(order);
  return order;
}

template <class Score, class Better>
void expect_best(const std::vector<Score>& scores, int64_t batch, int64_t kv_heads, int64_t max_len,
                 const Selection& s, const Better& better) {
  Stream stream;
  Workspace workspace;
  const int64_t most = *std::ranges::max_element(s.counts) + 3;
  Tensor indices({batch, kv_heads, most}, DType::i32);
  std::fill_n(indices.data<int32_t>(), indices.num_elements(), -7);

  select_top_k(stream, workspace, make_tensor({batch, kv_heads, max_len}, scores),
               make_tensor({batch}, s.lengths), make_tensor({batch}, s.counts), s.sink, s.recent,
               indices);

  const auto actual = to_vector<int32_t>(indices);
  for (int64_t row = 0; row < batch * kv_heads; ++row) {
    const Score* of = scores.data() + row * max_len;
    const auto b = static_cast<size_t>(row / kv_heads);
    std::vector<int32_t> expected =
        best_positions(s.lengths[b], s.counts[b], s.sink, s.recent,
                       [&](int32_t x, int32_t y) { return better(of[x], of[y]); });
    expected.resize(static_cast<size_t>(most), -7);
    EXPECT_EQ(std::vector<int32_t>(actual.begin() + row * most, actual.begin() + (row + 1) * most),
              expected)
        << "row " << row;
  }
}

const Selection kSelections[] = {
    {{1, 1}, {1, 1}},         {{600, 31}, {10, 10}},        {{600, 257}, {600, 257}},
    {{599, 600}, {64, 1}},    {{600, 300}, {32, 20}, 4, 8}, {{600, 20}, {32, 20}, 40, 50},
    {{33, 32}, {5, 5}, 3, 0}, {{300, 7}, {6, 6}, 0, 9}};

class SelectTopKTest : public testing::TestWithParam<Selection> {};

std::vector<uint16_t> random_distances(size_t n, uint32_t values) {
  std::mt19937 engine(11);
  std::vector<uint16_t> distances(n);
  for (uint16_t& distance : distances) distance = static_cast<uint16_t>(engine() % values);
  return distances;
}

TEST_P(SelectTopKTest, TakesTheSmallestDistances) {
  // Few distinct values make ties everywhere; the largest distances exceed one byte.
  for (const uint32_t values : {1u, 5u, 129u, 65536u}) {
    expect_best(random_distances(2 * 3 * 600, values), 2, 3, 600, GetParam(),
                [](uint16_t a, uint16_t b) { return a < b; });
  }
}

TEST_P(SelectTopKTest, TakesTheGreatestScores) {
  std::vector<float> scores = to_floats(random_tensor({2 * 3 * 600}, 4));
  for (size_t i = 0; i < scores.size(); i += 3) scores[i] = std::round(scores[i]);  // ties, zeros
  for (size_t i = 0; i < scores.size(); i += 7) scores[i] = -0.0f;
  scores[5] = INFINITY;
  scores[6] = -INFINITY;
  expect_best(scores, 2, 3, 600, GetParam(), [](float a, float b) { return a > b; });
}

// Rows that a device splits among blocks, whose lengths end within a block and at its edge.
class LongSelectTopKTest : public testing::TestWithParam<std::tuple<int64_t, Selection>> {
 protected:
  int64_t max_len() const { return std::get<0>(GetParam()); }
  const Selection& selection() const { return std::get<1>(GetParam()); }
};

TEST_P(LongSelectTopKTest, TakesTheSmallestDistances) {
  for (const uint32_t values : {1u, 129u, 65536u}) {
    expect_best(random_distances(static_cast<size_t>(2 * 2 * max_len()), values), 2, 2, max_len(),
                selection(), [](uint16_t a, uint16_t b) { return a < b; });
  }
}

TEST_P(LongSelectTopKTest, TakesTheGreatestScores) {
  std::vector<float> scores = to_floats(random_tensor({2 * 2 * max_len()}, 4));
  for (size_t i = 0; i < scores.size(); i += 3) scores[i] = std::round(scores[i]);  // ties, zeros
  expect_best(scores, 2, 2, max_len(), selection(), [](float a, float b) { return a > b; });
}

INSTANTIATE_TEST_SUITE_P(
    All, LongSelectTopKTest,
    testing::Combine(testing::Values(8200, 8201),  // with and without 16-byte accesses
                     testing::Values(Selection{{8200, 4097}, {1000, 1}},
                                     Selection{{8192, 2048}, {8192, 2047}},
                                     Selection{{6144, 6145}, {64, 3000}, 5, 17},
                                     Selection{{8200, 30}, {20, 20}, 4100, 3},
                                     Selection{{8200, 1}, {300, 1}, 0, 8000})));

TEST(SelectTopK, NanIsWorseThanAnyNumber) {
  Stream stream;
  Workspace workspace;
  Tensor indices({1, 1, 2}, DType::i32);

  select_top_k(stream, workspace, make_tensor<float>({1, 1, 4}, {-INFINITY, NAN, -5.0f, -NAN}),
               make_tensor<int32_t>({1}, {4}), make_tensor<int32_t>({1}, {2}), 0, 0, indices);

  EXPECT_EQ(to_vector<int32_t>(indices), (std::vector<int32_t>{0, 2}));
}

TEST(SelectTopK, RejectsMoreThanThereAre) {
  SWITCHYARD_CPU_ONLY("what tensors hold is checked where the host can see it");
  Stream stream;
  Workspace workspace;
  Tensor indices({1, 1, 9}, DType::i32);

  EXPECT_THAT(
      [&] {
        select_top_k(stream, workspace, Tensor({1, 1, 8}, DType::u16),
                     make_tensor<int32_t>({1}, {4}), make_tensor<int32_t>({1}, {5}), 0, 0, indices);
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("counts[0] is 5, expected 1 to 4")));
}

// ---- gather_attention --------------------------------------------------------------------------

struct Gather {
  explicit Gather(const Case& shape)
      : c(shape),
        scale(1.0f / std::sqrt(static_cast<float>(c.head_dim))),
        q(random_tensor({c.batch, c.heads, c.head_dim}, 1, c.dtype)),
        k(random_tensor({c.batch, c.kv_heads, c.max_len, c.head_dim}, 2, c.dtype)),
        v(random_tensor({c.batch, c.kv_heads, c.max_len, c.head_dim}, 3, c.dtype)),
        out({c.batch, c.heads * c.head_dim}, c.dtype) {}

  void attend(const Tensor& indices, const std::vector<int32_t>& counts) {
    gather_attention(stream, workspace, q, k, v, indices, make_tensor({c.batch}, counts), {}, scale,
                     out);
  }

  Case c;
  float scale;
  Stream stream;
  Workspace workspace;
  Tensor q, k, v, out;
};

// A shuffled choice of `count` positions per (sequence, kv head).
Tensor random_choice(const Case& c, int64_t count, int64_t stride) {
  std::mt19937 engine(6);
  Tensor indices({c.batch, c.kv_heads, stride}, DType::i32);
  for (int64_t row = 0; row < c.batch * c.kv_heads; ++row) {
    std::vector<int32_t> all(static_cast<size_t>(c.max_len));
    std::iota(all.begin(), all.end(), 0);
    std::ranges::shuffle(all, engine);
    std::copy_n(all.begin(), count, indices.data<int32_t>() + row * stride);
  }
  return indices;
}

class GatherAttentionTest : public testing::TestWithParam<Case> {};

TEST_P(GatherAttentionTest, EqualsDenseAttentionOverTheIndexSet) {
  const Case& c = GetParam();
  for (const int64_t wanted : {1, 31, 33, 64, 257}) {
    const int64_t count = std::min(wanted, c.max_len);
    Gather g(c);
    const Tensor indices = random_choice(c, count, count + 2);

    g.attend(indices,
             std::vector<int32_t>(static_cast<size_t>(c.batch), static_cast<int32_t>(count)));

    const std::vector<float> q = to_floats(g.q), k = to_floats(g.k), v = to_floats(g.v);
    const auto list = to_vector<int32_t>(indices);
    std::vector<float> expected;
    for (int64_t head = 0; head < c.batch * c.heads; ++head) {
      const int64_t row = head / c.group();
      std::vector<double> weights;
      double total = 0.0;
      for (int64_t i = 0; i < count; ++i) {
        double dot = 0.0;
        const int64_t key = row * c.max_len + list[static_cast<size_t>(row * (count + 2) + i)];
        for (int64_t d = 0; d < c.head_dim; ++d) {
          dot += static_cast<double>(q[static_cast<size_t>(head * c.head_dim + d)]) *
                 k[static_cast<size_t>(key * c.head_dim + d)];
        }
        total += weights.emplace_back(std::exp(g.scale * dot));
      }
      for (int64_t d = 0; d < c.head_dim; ++d) {
        double sum = 0.0;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t key = row * c.max_len + list[static_cast<size_t>(row * (count + 2) + i)];
          sum += weights[static_cast<size_t>(i)] * v[static_cast<size_t>(key * c.head_dim + d)];
        }
        expected.push_back(static_cast<float>(sum / total));
      }
    }
    EXPECT_LT(relative_error(to_floats(g.out), expected), c.dtype == DType::f32 ? 1e-6 : 4e-3)
        << count << " keys";
  }
}

// Every query head has weights of its own, and leaves keys out that others of its group read; the
// first of a group leaves out all but the last key.
TEST_P(GatherAttentionTest, LogWeightsAreAddedToTheScaledProducts) {
  const Case& c = GetParam();
  Gather g(c);
  const Tensor indices = random_choice(c, c.max_len, c.max_len + 2);
  const int64_t stride = c.max_len + 2;
  Tensor log_weights = random_tensor({c.batch, c.heads, stride}, 8);
  for (int64_t i = 0; i < log_weights.num_elements(); ++i) {
    const int64_t head = i / stride, key = i % stride;
    if (key != c.max_len - 1 && (head % c.group() == 0 || (key + head) % 3 == 0)) {
      log_weights.data<float>()[i] = -INFINITY;
    }
  }
  const std::vector<int32_t> counts(static_cast<size_t>(c.batch), static_cast<int32_t>(c.max_len));

  gather_attention(g.stream, g.workspace, g.q, g.k, g.v, indices, make_tensor({c.batch}, counts),
                   log_weights, g.scale, g.out);

  const std::vector<float> q = to_floats(g.q), k = to_floats(g.k), v = to_floats(g.v);
  std::vector<float> expected;
  for (int64_t head = 0; head < c.batch * c.heads; ++head) {
    std::vector<double> sums(static_cast<size_t>(c.head_dim));
    double total = 0.0;
    for (int64_t i = 0; i < c.max_len; ++i) {
      const int64_t row = head / c.group();
      const int64_t key = row * c.max_len + indices.data<int32_t>()[row * stride + i];
      double dot = 0.0;
      for (int64_t d = 0; d < c.head_dim; ++d) {
        dot += static_cast<double>(q[static_cast<size_t>(head * c.head_dim + d)]) *
               k[static_cast<size_t>(key * c.head_dim + d)];
      }
      const double weight = std::exp(g.scale * dot + log_weights.data<float>()[head * stride + i]);
      total += weight;
      for (int64_t d = 0; d < c.head_dim; ++d) {
        sums[static_cast<size_t>(d)] += weight * v[static_cast<size_t>(key * c.head_dim + d)];
      }
    }
    for (const double sum : sums) expected.push_back(static_cast<float>(sum / total));
  }
  EXPECT_LT(relative_error(to_floats(g.out), expected), c.dtype == DType::f32 ? 2e-6 : 4e-3);
}

TEST_P(GatherAttentionTest, OverAllKeysEqualsDenseDecoding) {
  const Case& c = GetParam();
  Gather g(c);
  Tensor dense(g.out.shape(), c.dtype);
  const std::vector<int32_t> lengths(static_cast<size_t>(c.batch), static_cast<int32_t>(c.max_len));

  g.attend(random_choice(c, c.max_len, c.max_len), lengths);

  decode_attention(g.stream, g.workspace, g.q, g.k, g.v, make_tensor({c.batch}, lengths), g.scale,
                   dense);
  EXPECT_LT(relative_error(to_floats(g.out), to_floats(dense)),
            c.dtype == DType::f32 ? 1e-6 : 8e-3);
}

TEST(GatherAttention, HugeScoresDoNotOverflow) {
  Gather g({1, 2, 1, 300, 32, 32});
  for (int64_t i = 0; i < g.q.num_elements(); ++i) g.q.data<float>()[i] *= 300.0f;

  g.attend(random_choice(g.c, 200, 200), {200});

  for (const float value : to_floats(g.out)) EXPECT_TRUE(std::isfinite(value));
}

TEST(GatherAttention, RejectsAnIndexBeyondTheCache) {
  SWITCHYARD_CPU_ONLY("what tensors hold is checked where the host can see it");
  Gather g({1, 1, 1, 8, 4, 32});

  EXPECT_THAT(
      [&] {
        g.attend(make_tensor<int32_t>({1, 1, 2}, {0, 8}), {2});
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("indices[0][0][1] is 8")));
}

INSTANTIATE_TEST_SUITE_P(All, HashEncodeTest, testing::ValuesIn(kCases));
INSTANTIATE_TEST_SUITE_P(All, HammingScoresTest, testing::ValuesIn(kCases));
INSTANTIATE_TEST_SUITE_P(All, SelectTopKTest, testing::ValuesIn(kSelections),
                         [](const auto& test) { return std::to_string(test.index); });
INSTANTIATE_TEST_SUITE_P(All, GatherAttentionTest, testing::ValuesIn(kCases));

}  // namespace
}  // namespace switchyard
