#include "kernels/attention/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <ostream>
#include <tuple>
#include <vector>

#include "kernels/cuda/cudnn_attention.h"
#include "kernels/runtime/check.h"
#include "tests/support/bf16_scope.h"
#include "tests/support/method_scope.h"
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
  std::vector<int64_t> documents;  // where they begin, in every sequence; empty: causal only
  DType dtype = DType::f32;
  Bf16Method method = Bf16Method::widened;
  AttentionMethod by = AttentionMethod::own;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  out << c.batch << "x" << c.heads << "/" << c.kv_heads << "x" << c.seq_len << "x" << c.head_dim
      << "_" << to_string(c.dtype) << "_" << to_string(c.method) << "_" << to_string(c.by)
      << "_documents";
  for (const int64_t start : c.documents) out << "_" << start;
  return out;
}

Tensor document_starts(int64_t batch, int64_t seq_len, const std::vector<int64_t>& documents) {
  std::vector<int32_t> starts;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < seq_len; ++t) {
      starts.push_back(
          static_cast<int32_t>(*(std::upper_bound(documents.begin(), documents.end(), t) - 1)));
    }
  }
  return make_tensor({batch, seq_len}, starts);
}

// Operands, outputs and gradients of one case.
struct Attention {
  explicit Attention(const Case& shape)
      : c(shape),
        scale(1.0f / std::sqrt(static_cast<float>(c.head_dim))),
        q(random_tensor({c.batch, c.heads, c.seq_len, c.head_dim}, 1, c.dtype)),
        k(random_tensor({c.batch, c.kv_heads, c.seq_len, c.head_dim}, 2, c.dtype)),
        v(random_tensor({c.batch, c.kv_heads, c.seq_len, c.head_dim}, 3, c.dtype)),
        dout(random_tensor({c.batch * c.seq_len, c.heads * c.head_dim}, 4, c.dtype)),
        out(dout.shape(), c.dtype),
        lse({c.batch, c.heads, c.seq_len}, DType::f32),
        dq(q.shape(), c.dtype),
        dk(k.shape(), c.dtype),
        dv(v.shape(), c.dtype) {
    if (!c.documents.empty()) starts = document_starts(c.batch, c.seq_len, c.documents);
  }

  ConstTensorView documents() const {
    return c.documents.empty() ? ConstTensorView() : starts.view();
  }
  void forward() { attention_forward(stream, workspace, q, k, v, documents(), scale, out, lse); }
  void backward() {
    attention_backward(stream, workspace, dout, q, k, v, out, lse, documents(), scale, dq, dk, dv);
  }

  Case c;
  float scale;
  Stream stream;
  Workspace workspace;
  Tensor q, k, v, dout, out, lse, dq, dk, dv, starts;
};

// The textbook's attention and its gradients, in double, one query at a time.
struct Reference {
  std::vector<float> out, lse, dq, dk, dv;
};

Reference reference(const Attention& a) {
  const auto [batch, heads, kv_heads, seq_len, dim, documents, dtype, method, by] = a.c;
  const std::vector<float> q = to_floats(a.q), k = to_floats(a.k), v = to_floats(a.v);
  const std::vector<float> dout = to_floats(a.dout);
  std::vector<double> out(dout.size()), lse(static_cast<size_t>(batch * heads * seq_len));
  std::vector<double> dq(q.size()), dk(k.size()), dv(v.size());
  for (int64_t row = 0; row < batch * heads * seq_len; ++row) {
    const int64_t b = row / (heads * seq_len), h = row / seq_len % heads, t = row % seq_len;
    const int64_t kv = (b * kv_heads + h / (heads / kv_heads)) * seq_len;
    const auto q_at = static_cast<size_t>(row * dim);
    const auto out_at = static_cast<size_t>(((b * seq_len + t) * heads + h) * dim);
    const int64_t begin = documents.empty() ? 0 : a.starts.data<int32_t>()[b * seq_len + t];
    const auto n = static_cast<size_t>(t + 1 - begin), d_end = static_cast<size_t>(dim);
    const auto kv_at = [&](size_t j) { return (static_cast<size_t>(kv + begin) + j) * d_end; };
    std::vector<double> p(n), dp(n);
    double sum = 0.0, delta = 0.0;
    for (size_t j = 0; j < n; ++j) {
      double score = 0.0;
      for (size_t d = 0; d < d_end; ++d) {
        score += static_cast<double>(q[q_at + d]) * k[kv_at(j) + d];
      }
      sum += p[j] = std::exp(score * a.scale);
    }
    lse[static_cast<size_t>(row)] = std::log(sum);
    for (size_t j = 0; j < n; ++j) {
      p[j] /= sum;
      for (size_t d = 0; d < d_end; ++d) {
        out[out_at + d] += p[j] * v[kv_at(j) + d];
        dv[kv_at(j) + d] += p[j] * dout[out_at + d];
        dp[j] += static_cast<double>(dout[out_at + d]) * v[kv_at(j) + d];
      }
      delta += p[j] * dp[j];
    }
    for (size_t j = 0; j < n; ++j) {
      const double dscore = a.scale * p[j] * (dp[j] - delta);
      for (size_t d = 0; d < d_end; ++d) {
        dq[q_at + d] += dscore * k[kv_at(j) + d];
        dk[kv_at(j) + d] += dscore * q[q_at + d];
      }
    }
  }
  const auto floats = [](const std::vector<double>& x) {
    return std::vector<float>(x.begin(), x.end());
  };
  return {floats(out), floats(lse), floats(dq), floats(dk), floats(dv)};
}

class AttentionTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    SWITCHYARD_NEEDS_METHOD(GetParam().method);
    scope_.emplace(GetParam().method);
    if (GetParam().by == AttentionMethod::cudnn && !cuda::has_cudnn()) {
      GTEST_SKIP() << "there is no cuDNN";
    }
    by_.emplace(GetParam().by);
  }

  // Relative to the greatest element. bf16 rounds results to 8 bits, and the backward pass reads
  // `out` after that rounding.
  double tolerance() const { return GetParam().dtype == DType::f32 ? 1e-5 : 1e-2; }

 private:
  std::optional<test::Bf16Scope> scope_;
  std::optional<test::AttentionScope> by_;
};

TEST_P(AttentionTest, ForwardEqualsTheDoubleReference) {
  Attention a(GetParam());
  const Reference expected = reference(a);

  a.forward();

  EXPECT_LT(relative_error(to_floats(a.out), expected.out), tolerance());
  EXPECT_LT(relative_error(to_floats(a.lse), expected.lse), 1e-5);
}

TEST_P(AttentionTest, BackwardEqualsTheDoubleReference) {
  Attention a(GetParam());
  const Reference expected = reference(a);
  a.forward();

  a.backward();

  EXPECT_LT(relative_error(to_floats(a.dv), expected.dv), tolerance());
  // With one key per query the gradients of q and k are zero except for rounding.
  const auto difference = [](const Tensor& x, std::vector<float> wanted) {
    std::vector<float> actual = to_floats(x);
    actual.push_back(1.0f);
    wanted.push_back(1.0f);
    return relative_error(actual, wanted);
  };
  EXPECT_LT(difference(a.dq, expected.dq), tolerance());
  EXPECT_LT(difference(a.dk, expected.dk), tolerance());
}

TEST_P(AttentionTest, DoesNotDependOnTheNumberOfThreads) {
  const int threads_before = omp_get_max_threads();
  std::vector<std::vector<float>> results;

  for (const int threads : {1, 2, 3}) {
    omp_set_num_threads(threads);
    Attention a(GetParam());
    a.forward();
    a.backward();
    std::vector<float> all = to_floats(a.out);
    for (const Tensor* part : {&a.lse, &a.dq, &a.dk, &a.dv}) {
      const std::vector<float> values = to_floats(*part);
      all.insert(all.end(), values.begin(), values.end());
    }
    results.push_back(std::move(all));
  }
  omp_set_num_threads(threads_before);

  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionTest,
    testing::Values(Case{1, 1, 1, 1, 1, {}}, Case{2, 1, 1, 31, 31, {}}, Case{1, 2, 2, 32, 32, {}},
                    Case{2, 4, 2, 33, 33, {}}, Case{1, 2, 1, 257, 64, {}},
                    Case{1, 1, 1, 600, 16, {}}, Case{2, 3, 1, 33, 8, {0, 1, 32}},
                    Case{1, 2, 1, 257, 32, {0, 7, 150, 200}}, Case{1, 1, 1, 600, 16, {0, 300}},
                    Case{1, 2, 1, 700, 17, {0, 30, 129, 650}},
                    Case{1, 1, 1, 1, 64, {}, DType::bf16}, Case{2, 4, 2, 33, 32, {}, DType::bf16},
                    Case{1, 2, 1, 257, 64, {}, DType::bf16},
                    Case{1, 4, 2, 257, 31, {0, 100, 101}, DType::bf16}));

// Probabilities are rounded to bf16 before they are multiplied, as tensor cores do.
constexpr Bf16Method kNative = Bf16Method::native;
INSTANTIATE_TEST_SUITE_P(
    NativeBf16, AttentionTest,
    testing::Values(Case{1, 1, 1, 1, 64, {}, DType::bf16, kNative},
                    Case{2, 4, 2, 33, 32, {}, DType::bf16, kNative},
                    Case{1, 2, 1, 257, 64, {}, DType::bf16, kNative},
                    Case{1, 4, 2, 257, 31, {0, 100, 101}, DType::bf16, kNative},
                    Case{1, 1, 1, 700, 17, {0, 30, 650}, DType::bf16, kNative}));

// CUDA computes these cases on tensor cores, in tiles of 64 and 32 rows.
INSTANTIATE_TEST_SUITE_P(TensorCores, AttentionTest,
                         testing::Values(Case{2, 2, 1, 31, 64, {}, DType::bf16},
                                         Case{1, 1, 1, 33, 128, {}, DType::bf16},
                                         Case{1, 4, 2, 64, 64, {}, DType::bf16},
                                         Case{1, 2, 1, 65, 128, {}, DType::bf16},
                                         Case{2, 2, 2, 127, 64, {0, 63, 64}, DType::bf16},
                                         Case{1, 4, 1, 129, 128, {0, 40, 100}, DType::bf16},
                                         Case{1, 2, 1, 257, 64, {0, 7, 150, 200}, DType::bf16}));

// cuDNN computes these, but for the one with documents and those of one position or an odd width,
// which our kernels compute also where it is chosen.
Case by_cudnn(int64_t batch, int64_t heads, int64_t kv_heads, int64_t seq_len, int64_t head_dim,
              std::vector<int64_t> documents = {}) {
  return {batch,
          heads,
          kv_heads,
          seq_len,
          head_dim,
          std::move(documents),
          DType::bf16,
          Bf16Method::widened,
          AttentionMethod::cudnn};
}
INSTANTIATE_TEST_SUITE_P(Cudnn, AttentionTest,
                         testing::Values(by_cudnn(2, 2, 1, 31, 64), by_cudnn(1, 1, 1, 33, 128),
                                         by_cudnn(2, 4, 2, 64, 8), by_cudnn(2, 6, 2, 65, 96),
                                         by_cudnn(1, 4, 4, 129, 80), by_cudnn(1, 2, 1, 40, 256),
                                         by_cudnn(2, 2, 2, 127, 64, {0, 63, 64}),
                                         by_cudnn(2, 2, 2, 1, 64), by_cudnn(1, 2, 1, 33, 20)));

// The gradients of scores of two sequences fill a call of cuDNN.
INSTANTIATE_TEST_SUITE_P(CudnnInSeveralCalls, AttentionTest,
                         testing::Values(by_cudnn(3, 16384, 4096, 2, 8)));

// A view of a shape only.
ConstTensorView queries(int64_t batch, int64_t heads, int64_t seq_len, int64_t head_dim,
                        DType dtype = DType::bf16) {
  return {nullptr, {batch, heads, seq_len, head_dim}, dtype};
}

TEST(CudnnTest, GetsWhatItTakes) {
  const std::vector<int32_t> starts(64);
  const ConstTensorView documents(starts.data(), {1, 64}, DType::i32);
  for (const bool backward : {false, true}) {
    EXPECT_TRUE(cuda::fits_cudnn(queries(1, 2, 64, 8), {}, backward));
    EXPECT_TRUE(cuda::fits_cudnn(queries(1, 2, 64, 256), {}, backward));
    EXPECT_FALSE(cuda::fits_cudnn(queries(1, 2, 64, 264), {}, backward));
    EXPECT_FALSE(cuda::fits_cudnn(queries(1, 2, 64, 20), {}, backward));
    EXPECT_FALSE(cuda::fits_cudnn(queries(1, 2, 64, 64, DType::f32), {}, backward));
    EXPECT_FALSE(cuda::fits_cudnn(queries(1, 2, 1, 64), {}, backward));
    EXPECT_FALSE(cuda::fits_cudnn(queries(0, 2, 64, 64), {}, backward));
    EXPECT_FALSE(cuda::fits_cudnn(queries(1, 2, 64, 64), documents, backward));
  }
}

// The backward pass keeps 2 bytes for each score: 2 GiB for 16 heads of 8,192 positions.
TEST(CudnnTest, ScoresOfALongSequenceAreLeftToOurBackwardPass) {
  EXPECT_TRUE(cuda::fits_cudnn(queries(1, 16, 8192, 64), {}, /*backward=*/true));
  EXPECT_FALSE(cuda::fits_cudnn(queries(1, 17, 8192, 64), {}, /*backward=*/true));
  EXPECT_TRUE(cuda::fits_cudnn(queries(1, 17, 8192, 64), {}, /*backward=*/false));
}

TEST(CudnnTest, ACallTakesSequencesWhoseScoresNeedHalfAGibibyte) {
  EXPECT_EQ(cuda::cudnn_sequences_per_call(queries(16, 16, 2048, 64)), 4);
  EXPECT_EQ(cuda::cudnn_sequences_per_call(queries(3, 16, 2048, 64)), 3);
  EXPECT_EQ(cuda::cudnn_sequences_per_call(queries(16, 16, 8192, 64)), 1);

  const size_t bytes =
      cuda::cudnn_backward_bytes(queries(16, 16, 2048, 64), queries(16, 16, 2048, 64));
  EXPECT_GT(bytes, size_t{512} << 20);
  EXPECT_LT(bytes, size_t{513} << 20);
}

TEST(AttentionGradientTest, EqualsCentralFiniteDifferences) {
  Attention a({1, 2, 1, 9, 4, {0, 5}});
  a.forward();
  a.backward();
  const Tensor q = random_tensor(a.q.shape(), 1);

  const auto loss = [&] {
    a.forward();
    return test::inner_product(a.dout, a.out);
  };

  // A step of 1e-2 leaves a cubic error of about 1e-4; f32 rounding over the step is smaller.
  EXPECT_LT(relative_error(to_floats(a.dq), test::numeric_gradient(a.q, loss)), 1e-3);
  EXPECT_LT(relative_error(to_floats(a.dk), test::numeric_gradient(a.k, loss)), 1e-3);
  EXPECT_LT(relative_error(to_floats(a.dv), test::numeric_gradient(a.v, loss)), 1e-3);
}

// The rows of every head of x [1, heads, seq_len, head_dim], beginning with row `start`.
std::vector<float> rows_from(ConstTensorView x, int64_t start) {
  const ConstTensorView heads = x.reshape({x.dim(1), x.dim(2), x.dim(3)});
  std::vector<float> values;
  for (int64_t h = 0; h < heads.dim(0); ++h) {
    const std::vector<float> tail =
        to_floats(heads.rows(h, 1).reshape({x.dim(2), x.dim(3)}).rows(start, x.dim(2) - start));
    values.insert(values.end(), tail.begin(), tail.end());
  }
  return values;
}

class DocumentIsolationTest : public testing::TestWithParam<std::tuple<DType, int64_t>> {};

TEST_P(DocumentIsolationTest, AChangeInOneDocumentLeavesTheNextBitwiseUnchanged) {
  const auto [dtype, dim] = GetParam();
  const int64_t seq_len = 257, start = 70;
  Attention before({1, 4, 2, seq_len, dim, {0, start}, dtype}), after(before.c);
  for (Tensor* x : {&after.q, &after.k, &after.v}) {
    const Tensor other = random_tensor(x->shape(), 9, dtype, /*std=*/3.0f);
    const size_t head_bytes = static_cast<size_t>(seq_len * dim) * size_of(dtype);
    for (int64_t h = 0; h < x->shape()[1]; ++h) {
      const size_t offset = static_cast<size_t>(h) * head_bytes;
      std::memcpy(static_cast<std::byte*>(x->view().raw()) + offset,
                  static_cast<const std::byte*>(other.view().raw()) + offset,
                  static_cast<size_t>(start * dim) * size_of(dtype));
    }
  }

  for (Attention* each : {&before, &after}) {
    each->forward();
    each->backward();
  }

  const auto second_document = [&](const Attention& a) {
    return to_floats(a.out.view().rows(start, seq_len - start));
  };
  EXPECT_NE(to_floats(after.out), to_floats(before.out));
  EXPECT_EQ(second_document(after), second_document(before));
  for (auto gradient : {&Attention::dq, &Attention::dk, &Attention::dv}) {
    EXPECT_EQ(rows_from(after.*gradient, start), rows_from(before.*gradient, start));
  }
}

INSTANTIATE_TEST_SUITE_P(All, DocumentIsolationTest,
                         testing::Values(std::tuple(DType::f32, 16), std::tuple(DType::bf16, 16),
                                         std::tuple(DType::bf16, 64)));

TEST(AttentionDocumentTest, OneDocumentIsTheCausalMask) {
  Attention causal({1, 2, 2, 257, 16, {}});
  Attention documents({1, 2, 2, 257, 16, {0}});

  causal.forward();
  documents.forward();

  EXPECT_EQ(to_floats(documents.out), to_floats(causal.out));
}

TEST(AttentionDocumentTest, RejectsAStartBehindThePosition) {
  SWITCHYARD_CPU_ONLY("what tensors hold is checked where the host can see it");
  Attention a({1, 1, 1, 4, 8, {0}});
  a.starts.data<int32_t>()[2] = 3;

  EXPECT_THAT([&] { a.forward(); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("document_start[0][2] is 3")));
}

TEST(AttentionNumericsTest, ScoresFarBeyondTheRangeOfExpStayExact) {
  Attention a({1, 1, 1, 300, 32, {}});
  for (int64_t i = 0; i < a.q.num_elements(); ++i) a.q.data<float>()[i] *= 200.0f;
  a.scale = 1.0f;

  a.forward();

  for (const float value : to_floats(a.out)) ASSERT_TRUE(std::isfinite(value));
  for (const float value : to_floats(a.lse)) ASSERT_TRUE(std::isfinite(value));
}

TEST(AttentionNumericsTest, ANanInAQueryReachesItsOutput) {
  Attention a({1, 1, 1, 40, 8, {}});
  a.q.data<float>()[39 * 8] = NAN;

  a.forward();

  EXPECT_TRUE(std::isnan(to_floats(a.out).back()));
}

class DecodeAttentionTest : public testing::TestWithParam<DType> {};

TEST_P(DecodeAttentionTest, EqualsTheLastRowOfForward) {
  const int64_t batch = 2, heads = 4, kv_heads = 2, max_len = 300, dim = 32;
  for (const int64_t length : {1, 31, 32, 33, 257, 300}) {
    Attention a({batch, heads, kv_heads, length, dim, {}, GetParam()});
    a.forward();
    Tensor q({batch, heads, dim}, GetParam()), out({batch, heads * dim}, GetParam());
    Tensor k({batch, kv_heads, max_len, dim}, GetParam()), v(k.shape(), GetParam());
    const auto row = static_cast<size_t>(dim) * size_of(GetParam());
    const auto copy_rows = [&](const Tensor& from, int64_t from_row, Tensor& to, int64_t to_row,
                               int64_t count) {
      std::memcpy(
          static_cast<std::byte*>(to.view().raw()) + static_cast<size_t>(to_row) * row,
          static_cast<const std::byte*>(from.view().raw()) + static_cast<size_t>(from_row) * row,
          static_cast<size_t>(count) * row);
    };
    for (int64_t h = 0; h < batch * heads; ++h) copy_rows(a.q, (h + 1) * length - 1, q, h, 1);
    for (int64_t h = 0; h < batch * kv_heads; ++h) {
      copy_rows(a.k, h * length, k, h * max_len, length);
      copy_rows(a.v, h * length, v, h * max_len, length);
    }
    const Tensor lengths =
        make_tensor({batch}, std::vector<int32_t>(batch, static_cast<int32_t>(length)));

    decode_attention(a.stream, a.workspace, q, k, v, lengths, a.scale, out);

    std::vector<float> last;
    for (int64_t b = 0; b < batch; ++b) {
      const std::vector<float> rows = to_floats(a.out.view().rows((b + 1) * length - 1, 1));
      last.insert(last.end(), rows.begin(), rows.end());
    }
    EXPECT_LT(relative_error(to_floats(out), last), GetParam() == DType::f32 ? 2e-6 : 8e-3);
  }
}

TEST_P(DecodeAttentionTest, RejectsALengthBeyondTheCache) {
  SWITCHYARD_CPU_ONLY("what tensors hold is checked where the host can see it");
  Stream stream;
  Workspace workspace;
  const Tensor q({1, 1, 4}, GetParam()), cache({1, 1, 8, 4}, GetParam());
  const Tensor lengths = make_tensor({1}, std::vector<int32_t>{9});
  Tensor out({1, 4}, GetParam());

  EXPECT_THAT([&] { decode_attention(stream, workspace, q, cache, cache, lengths, 1.0f, out); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("lengths[0] is 9")));
}

INSTANTIATE_TEST_SUITE_P(All, DecodeAttentionTest, testing::Values(DType::f32, DType::bf16));

}  // namespace
}  // namespace switchyard
