// Attention to caches that are longer than the piece that one task of the CPU, or one block of a
// device, reads.
#include "kernels/decode/attend_cached.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <numeric>
#include <ostream>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/decode/gather_attention.h"
#include "kernels/decode/hamming_scores.h"
#include "kernels/decode/hash_encode.h"
#include "kernels/decode/select_top_k.h"
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
  int64_t heads, kv_heads, head_dim;
  DType dtype;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.heads << "/" << c.kv_heads << "x" << c.head_dim << "_" << to_string(c.dtype);
}

// Heads that share a pass and heads that do not; widths that fill vectors and widths that do not.
const Case kCases[] = {{1, 1, 128, DType::f32},  {4, 1, 128, DType::f32}, {5, 1, 40, DType::f32},
                       {2, 2, 7, DType::f32},    {9, 1, 33, DType::bf16}, {1, 1, 128, DType::bf16},
                       {4, 1, 128, DType::bf16}, {3, 1, 64, DType::f32},  {6, 1, 40, DType::f32},
                       {7, 1, 33, DType::bf16},  {8, 1, 64, DType::f32},  {10, 2, 40, DType::f32},
                       {13, 1, 16, DType::f32}};

struct Cache {
  static constexpr int64_t kMaxLen = 2100;

  explicit Cache(const Case& shape)
      : c(shape),
        scale(1.0f / std::sqrt(static_cast<float>(c.head_dim))),
        q(random_tensor({2, c.heads, c.head_dim}, 1, c.dtype)),
        k(random_tensor({2, c.kv_heads, kMaxLen, c.head_dim}, 2, c.dtype)),
        v(random_tensor({2, c.kv_heads, kMaxLen, c.head_dim}, 3, c.dtype)),
        lengths(make_tensor<int32_t>({2}, {2100, 1025})),
        out({2, c.heads * c.head_dim}, c.dtype) {}

  void attend_densely() { decode_attention(stream, workspace, q, k, v, lengths, scale, out); }
  // Gathers all positions in order.
  void attend_by_list() {
    Tensor list({2, c.kv_heads, kMaxLen}, DType::i32);
    for (int64_t i = 0; i < list.num_elements(); ++i) {
      list.data<int32_t>()[i] = static_cast<int32_t>(i % kMaxLen);
    }
    gather_attention(stream, workspace, q, k, v, list, lengths, {}, scale, out);
  }
  std::vector<float> expected() const;

  Case c;
  float scale;
  Stream stream;
  Workspace workspace;
  Tensor q, k, v, lengths, out;
};

// softmax(scale q k^T) v of one head, in double.
void softmax_of_head(const float* q, const float* k, const float* v, int64_t length, int64_t width,
                     double scale, std::vector<float>& out) {
  std::vector<double> weights, sums(static_cast<size_t>(width), 0.0);
  for (int64_t p = 0; p < length; ++p) {
    weights.push_back(std::exp(scale * std::inner_product(q, q + width, k + p * width, 0.0)));
  }
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (int64_t p = 0; p < length; ++p) {
    for (int64_t d = 0; d < width; ++d) {
      sums[static_cast<size_t>(d)] += weights[static_cast<size_t>(p)] / total * v[p * width + d];
    }
  }
  out.insert(out.end(), sums.begin(), sums.end());
}

std::vector<float> Cache::expected() const {
  const std::vector<float> qs = to_floats(q), ks = to_floats(k), vs = to_floats(v);
  std::vector<float> result;
  for (int64_t head = 0; head < 2 * c.heads; ++head) {
    const int64_t row = head / (c.heads / c.kv_heads);
    softmax_of_head(qs.data() + head * c.head_dim, ks.data() + row * kMaxLen * c.head_dim,
                    vs.data() + row * kMaxLen * c.head_dim, head < c.heads ? 2100 : 1025,
                    c.head_dim, scale, result);
  }
  return result;
}

class LongCacheTest : public testing::TestWithParam<Case> {};

TEST_P(LongCacheTest, DenseAttentionEqualsTheSoftmaxInDouble) {
  Cache cache(GetParam());

  cache.attend_densely();

  EXPECT_LT(relative_error(to_floats(cache.out), cache.expected()),
            GetParam().dtype == DType::f32 ? 2e-6 : 4e-3);
}

TEST_P(LongCacheTest, AListOfPositionsEqualsTheSoftmaxInDouble) {
  Cache cache(GetParam());

  cache.attend_by_list();

  EXPECT_LT(relative_error(to_floats(cache.out), cache.expected()),
            GetParam().dtype == DType::f32 ? 2e-6 : 4e-3);
}

TEST_P(LongCacheTest, AllPositionsInOrderGiveTheBitsOfDenseAttention) {
  SWITCHYARD_CPU_ONLY("devices split the two differently");
  Cache dense(GetParam()), list(GetParam());

  dense.attend_densely();
  list.attend_by_list();

  EXPECT_EQ(to_floats(list.out), to_floats(dense.out));
}

// The second sequence ends long before its cache does.
TEST_P(LongCacheTest, WhatScratchMemoryHeldBeforeDoesNotMatter) {
  Cache cache(GetParam());
  cache.attend_densely();
  const std::vector<float> expected = to_floats(cache.out);
  {
    const WorkspaceScope scope(cache.workspace);
    constexpr int64_t kMore = 1 << 16;  // than the scratch of the op
    std::fill_n(cache.workspace.take({kMore}, DType::f32).data<float>(), kMore, NAN);
  }

  cache.attend_densely();

  EXPECT_EQ(to_floats(cache.out), expected);
}

// Every other head reads only the keys of its last task, the others all keys but these.
TEST_P(LongCacheTest, AHeadMayLeaveOutAllKeysOfATask) {
  const Case& c = GetParam();
  const auto edge_of = [&](int64_t head) { return head < c.heads ? 2048 : 1024; };
  Cache cache(c);
  Tensor list({2, c.kv_heads, Cache::kMaxLen}, DType::i32);
  for (int64_t i = 0; i < list.num_elements(); ++i) {
    list.data<int32_t>()[i] = static_cast<int32_t>(i % Cache::kMaxLen);
  }
  Tensor log_weights({2, c.heads, Cache::kMaxLen}, DType::f32);
  for (int64_t i = 0; i < log_weights.num_elements(); ++i) {
    const int64_t head = i / Cache::kMaxLen;
    const bool late = i % Cache::kMaxLen >= edge_of(head);
    if (late != (head % 2 == 0)) log_weights.data<float>()[i] = -INFINITY;
  }

  gather_attention(cache.stream, cache.workspace, cache.q, cache.k, cache.v, list, cache.lengths,
                   log_weights, cache.scale, cache.out);

  const std::vector<float> q = to_floats(cache.q), k = to_floats(cache.k), v = to_floats(cache.v);
  std::vector<float> expected;
  for (int64_t head = 0; head < 2 * c.heads; ++head) {
    const int64_t row = head / (c.heads / c.kv_heads), length = head < c.heads ? 2100 : 1025;
    const int64_t first = head % 2 == 0 ? edge_of(head) : 0;
    const int64_t end = head % 2 == 0 ? length : edge_of(head);
    const int64_t at = (row * Cache::kMaxLen + first) * c.head_dim;
    softmax_of_head(q.data() + head * c.head_dim, k.data() + at, v.data() + at, end - first,
                    c.head_dim, cache.scale, expected);
  }
  EXPECT_LT(relative_error(to_floats(cache.out), expected), c.dtype == DType::f32 ? 2e-6 : 4e-3);
}

INSTANTIATE_TEST_SUITE_P(All, LongCacheTest, testing::ValuesIn(kCases));

// Runs all ops of a hash-aware step on caches of several pieces.
std::vector<float> step_with_threads(int threads) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  Cache cache({6, 2, 32, DType::f32});
  const Tensor weight = random_tensor({2, 32, 128}, 4);
  Tensor q_codes({2, 6, 4}, DType::i32), codes({2, 2, Cache::kMaxLen, 4}, DType::i32);
  Tensor norms({2, 2, Cache::kMaxLen}, DType::f32), scores(norms.shape(), DType::f32);
  Tensor distances(norms.shape(), DType::u16), indices({2, 2, 1200}, DType::i32);
  const Tensor counts = make_tensor<int32_t>({2}, {1200, 40});
  hash_encode(cache.stream, cache.q.view().reshape({2, 6, 1, 32}), cache.k, {weight, {}, {}}, 0,
              q_codes.view().reshape({2, 6, 1, 4}), codes, norms);
  hamming_scores(cache.stream, q_codes, QueryCodes::signs, codes, cache.lengths, distances);
  key_norm_scores(cache.stream, distances, norms, cache.lengths, 3, 128, scores);
  select_top_k(cache.stream, cache.workspace, scores, cache.lengths, counts, 0, 0, indices);
  gather_attention(cache.stream, cache.workspace, cache.q, cache.k, cache.v, indices, counts, {},
                   cache.scale, cache.out);
  std::vector<float> result = to_floats(cache.out);
  cache.attend_densely();
  const std::vector<float> dense = to_floats(cache.out);
  result.insert(result.end(), dense.begin(), dense.end());
  omp_set_num_threads(before);
  return result;
}

TEST(HashAwareStep, DoesNotDependOnTheNumberOfThreads) {
  SWITCHYARD_CPU_ONLY("threads of the host");
  const std::vector<float> one = step_with_threads(1);

  for (const int threads : {2, 3, 7}) EXPECT_EQ(step_with_threads(threads), one) << threads;
}

}  // namespace
}  // namespace switchyard
