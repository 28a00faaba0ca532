#include "kernels/decode/received_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <ostream>
#include <vector>

#include "kernels/attention/attention.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::relative_error;
using test::Stream;
using test::Tensor;
using test::to_floats;
using test::Workspace;

struct Case {
  int64_t batch, heads, kv_heads, seq_len, head_dim;
  DType dtype = DType::f32;

  int64_t group() const { return heads / kv_heads; }
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.batch << "x" << c.heads << "/" << c.kv_heads << "x" << c.seq_len << "x"
             << c.head_dim << "_" << to_string(c.dtype);
}

// Lengths around a warp, the CPU's blocks of queries (128) and its blocks of keys (512).
const Case kCases[] = {{1, 1, 1, 1, 8},
                       {2, 4, 2, 33, 16},
                       {1, 2, 2, 130, 33},
                       {1, 1, 1, 515, 8},
                       {2, 4, 2, 65, 64, DType::bf16}};

float scale_of(const Case& c) { return 1.0f / std::sqrt(static_cast<float>(c.head_dim)); }

double dot(const float* x, const float* y, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * y[i];
  return sum;
}

// The softmax of one query over the keys at `positions`, in double.
//   k  [.., head_dim], of one key/value head
std::vector<double> softmax_of(const float* q, const float* k, int64_t head_dim, double scale,
                               const std::vector<int32_t>& positions) {
  std::vector<double> weights;
  double total = 0.0;
  for (const int32_t p : positions) {
    total += weights.emplace_back(std::exp(scale * dot(q, k + p * head_dim, head_dim)));
  }
  for (double& weight : weights) weight /= total;
  return weights;
}

class ReceivedAttentionTest : public testing::TestWithParam<Case> {};

TEST_P(ReceivedAttentionTest, IsTheColumnSumOfTheCausalSoftmax) {
  const Case& c = GetParam();
  Stream stream;
  Workspace workspace;
  const int64_t max_len = c.seq_len + 3;
  const Tensor q = random_tensor({c.batch, c.heads, c.seq_len, c.head_dim}, 1, c.dtype);
  const Tensor k = random_tensor({c.batch, c.kv_heads, c.seq_len, c.head_dim}, 2, c.dtype);
  const std::vector<float> qs = to_floats(q), ks = to_floats(k);
  Tensor out({c.batch * c.seq_len, c.heads * c.head_dim}, c.dtype);
  Tensor lse({c.batch, c.heads, c.seq_len}, DType::f32);
  attention_forward(stream, workspace, q, k, k, {}, scale_of(c), out, lse);

  for (const int64_t first : {int64_t{0}, c.seq_len / 2, c.seq_len - 1}) {
    Tensor received({c.batch, c.kv_heads, max_len}, DType::f32);
    std::fill_n(received.data<float>(), received.num_elements(), -7.0f);

    received_attention(stream, workspace, q, k, lse, first, scale_of(c), received);

    std::vector<float> expected(static_cast<size_t>(received.num_elements()), -7.0f);
    for (int64_t row = 0; row < c.batch * c.kv_heads; ++row) {
      std::vector<double> sums(static_cast<size_t>(c.seq_len));
      for (int64_t head = row * c.group(); head < (row + 1) * c.group(); ++head) {
        std::vector<int32_t> seen;
        for (int64_t t = 0; t < c.seq_len; ++t) {
          seen.push_back(static_cast<int32_t>(t));
          if (t < first) continue;
          const std::vector<double> weights =
              softmax_of(qs.data() + (head * c.seq_len + t) * c.head_dim,
                         ks.data() + row * c.seq_len * c.head_dim, c.head_dim, scale_of(c), seen);
          for (size_t p = 0; p < weights.size(); ++p) sums[p] += weights[p];
        }
      }
      std::copy(sums.begin(), sums.end(), expected.begin() + row * max_len);
    }
    EXPECT_LT(relative_error(to_floats(received), expected), 1e-5) << "first query " << first;
  }
}

TEST_P(ReceivedAttentionTest, ListedKeysReceiveTheQueryAndOthersAreEvicted) {
  const Case& c = GetParam();
  Stream stream;
  Workspace workspace;
  const Tensor q = random_tensor({c.batch, c.heads, c.head_dim}, 1, c.dtype);
  const Tensor k = random_tensor({c.batch, c.kv_heads, c.seq_len, c.head_dim}, 2, c.dtype);
  const std::vector<float> qs = to_floats(q), ks = to_floats(k);
  Tensor scores = random_tensor({c.batch, c.kv_heads, c.seq_len}, 3);
  std::vector<float> expected = to_floats(scores);
  // Every third position of the cached ones, from another start in each head, in falling order.
  const int64_t stride = c.seq_len / 3 + 1;
  Tensor indices({c.batch, c.kv_heads, stride}, DType::i32);
  std::vector<int32_t> counts, lengths;
  for (int64_t b = 0; b < c.batch; ++b) {
    lengths.push_back(static_cast<int32_t>(std::max<int64_t>(c.seq_len - b, 1)));
    counts.push_back(static_cast<int32_t>(std::max<int64_t>(lengths.back() / 3, 1)));
  }
  for (int64_t row = 0; row < c.batch * c.kv_heads; ++row) {
    const auto b = static_cast<size_t>(row / c.kv_heads);
    std::vector<int32_t> list;
    for (int32_t i = 0; i < counts[b]; ++i) {
      list.push_back(std::max(lengths[b] - 1 - 3 * i - static_cast<int32_t>(row % 2), 0));
    }
    std::copy(list.begin(), list.end(), indices.data<int32_t>() + row * stride);
    float* own = expected.data() + row * c.seq_len;
    std::vector<float> kept;
    for (const int32_t p : list) kept.push_back(own[p]);
    for (int64_t head = row * c.group(); head < (row + 1) * c.group(); ++head) {
      const std::vector<double> weights =
          softmax_of(qs.data() + head * c.head_dim, ks.data() + row * c.seq_len * c.head_dim,
                     c.head_dim, scale_of(c), list);
      for (size_t i = 0; i < list.size(); ++i) kept[i] += static_cast<float>(weights[i]);
    }
    std::fill_n(own, lengths[b], -std::numeric_limits<float>::infinity());
    for (size_t i = 0; i < list.size(); ++i) own[list[i]] = kept[i];
  }

  evict_and_score(stream, workspace, q, k, indices, make_tensor({c.batch}, counts),
                  make_tensor({c.batch}, lengths), scale_of(c), scores);

  const std::vector<float> actual = to_floats(scores);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isinf(expected[i])) {
      EXPECT_EQ(actual[i], expected[i]) << i;
    } else {
      EXPECT_NEAR(actual[i], expected[i], 1e-5) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReceivedAttentionTest, testing::ValuesIn(kCases));

}  // namespace
}  // namespace switchyard
