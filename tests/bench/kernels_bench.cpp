#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <vector>

#include "bench/ceiling_report.h"
#include "kernels/attention/attention.h"
#include "kernels/linear/matmul.h"
#include "tests/support/test_tensors.h"

namespace switchyard::bench {
namespace {

using test::random_tensor;

constexpr DType kDtypes[] = {DType::f32, DType::bf16};

DType dtype_of_argument(int64_t argument) { return kDtypes[argument]; }

std::vector<int64_t> dtype_arguments() { return {0, 1}; }

// One linear map of `tokens` rows: y = x w^T, dx = dy w, dw += dy^T x.
struct LinearOperands {
  LinearOperands(int64_t tokens, int64_t in, int64_t out, DType dtype)
      : x(random_tensor({tokens, in}, 1, dtype)),
        y(random_tensor({tokens, out}, 2, dtype)),
        weight(random_tensor({out, in}, 3, dtype)),
        dweight({out, in}, DType::f32) {}

  Tensor x, y, weight, dweight;
};

void linear(benchmark::State& state) {
  const int64_t tokens = state.range(1), in = state.range(2), out = state.range(3);
  const DType dtype = dtype_of_argument(state.range(0));
  Stream stream;
  LinearOperands t(tokens, in, out, dtype);
  CeilingReport report =
      product_report(state, 3 * 2.0 * static_cast<double>(tokens * in * out), dtype);
  report.run([&] {
    matmul(stream, t.x, Transpose::no, t.weight, Transpose::yes, Accumulate::no, t.y);
    matmul(stream, t.y, Transpose::no, t.weight, Transpose::no, Accumulate::no, t.x);
    matmul(stream, t.y, Transpose::yes, t.x, Transpose::no, Accumulate::yes, t.dweight);
  });
}
BENCHMARK(linear)
    ->Name("linear_forward_backward")
    ->ArgNames({"bf16", "tokens", "in", "out"})
    ->ArgsProduct({dtype_arguments(), {1024}, {512}, {512, 1536}})
    ->ArgsProduct({dtype_arguments(), {2048}, {2048}, {2048}})
    ->UseRealTime();

// 64 experts with groups of 0 to 256 rows, as an unbalanced router makes them.
std::vector<int64_t> ragged_offsets() {
  std::mt19937 engine(1);
  std::vector<int64_t> offsets = {0};
  for (int e = 0; e < 64; ++e) {
    offsets.push_back(offsets.back() + static_cast<int64_t>(engine() % 257));
  }
  return offsets;
}

struct GroupedOperands {
  GroupedOperands(int64_t in, int64_t out, DType dtype)
      : row_offsets(ragged_offsets()),
        rows(row_offsets.back()),
        x(random_tensor({rows, in}, 1, dtype)),
        y(random_tensor({rows, out}, 2, dtype)),
        weight(random_tensor({64, out, in}, 3, dtype)),
        dweight({64, out, in}, DType::f32) {}

  std::vector<int64_t> row_offsets;
  int64_t rows;
  Tensor x, y, weight, dweight;
  Stream stream;
};

template <class Run>
void grouped(benchmark::State& state, Run run) {
  const int64_t in = state.range(1), out = state.range(2);
  const DType dtype = dtype_of_argument(state.range(0));
  GroupedOperands t(in, out, dtype);
  CeilingReport report = product_report(state, 2.0 * static_cast<double>(t.rows * in * out), dtype);
  report.run([&] { run(t); });
}

void grouped_arguments(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"bf16", "in", "out"})
      ->ArgsProduct({dtype_arguments(), {512}, {256}})
      ->ArgsProduct({dtype_arguments(), {256}, {512}})
      ->UseRealTime();
}

BENCHMARK_CAPTURE(grouped, forward, [](GroupedOperands& t) {
  grouped_linear_forward(t.stream, t.x, t.weight, t.row_offsets, t.y);
})->Apply(grouped_arguments);
BENCHMARK_CAPTURE(grouped, backward_input, [](GroupedOperands& t) {
  grouped_linear_backward_input(t.stream, t.y, t.weight, t.row_offsets, t.x);
})->Apply(grouped_arguments);
BENCHMARK_CAPTURE(grouped, backward_weight, [](GroupedOperands& t) {
  grouped_linear_backward_weight(t.stream, t.y, t.x, t.row_offsets, Accumulate::yes, t.dweight);
})->Apply(grouped_arguments);

struct AttentionOperands {
  AttentionOperands(int64_t batch, int64_t heads, int64_t kv_heads, int64_t seq_len, int64_t dim,
                    DType dtype)
      : q(random_tensor({batch, heads, seq_len, dim}, 1, dtype)),
        k(random_tensor({batch, kv_heads, seq_len, dim}, 2, dtype)),
        v(random_tensor({batch, kv_heads, seq_len, dim}, 3, dtype)),
        dout(random_tensor({batch * seq_len, heads * dim}, 4, dtype)),
        out(dout.shape(), dtype),
        lse({batch, heads, seq_len}, DType::f32),
        dq(q.shape(), dtype),
        dk(k.shape(), dtype),
        dv(v.shape(), dtype),
        scale(1.0f / std::sqrt(static_cast<float>(dim))) {}

  void forward() { attention_forward(stream, workspace, q, k, v, {}, scale, out, lse); }
  void backward() {
    attention_backward(stream, workspace, dout, q, k, v, out, lse, {}, scale, dq, dk, dv);
  }

  Tensor q, k, v, dout, out, lse, dq, dk, dv;
  float scale;
  Stream stream;
  Workspace workspace;
};

// FLOPs are those of the causal half: 2 products forward, 5 backward, of
// seq_len (seq_len + 1) / 2 pairs. The masked half of diagonal blocks does not count.
template <class Run>
void attention(benchmark::State& state, int products, Run run) {
  const int64_t batch = 2, heads = 8, kv_heads = state.range(1), seq_len = state.range(2);
  const int64_t dim = 64;
  const DType dtype = dtype_of_argument(state.range(0));
  AttentionOperands t(batch, heads, kv_heads, seq_len, dim, dtype);
  t.forward();
  const double pairs = static_cast<double>(batch * heads * seq_len * (seq_len + 1) / 2);
  CeilingReport report =
      product_report(state, 2.0 * products * pairs * static_cast<double>(dim), dtype);
  report.run([&] { run(t); });
}

void attention_arguments(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"bf16", "kv_heads", "seq_len"})
      ->ArgsProduct({dtype_arguments(), {8, 2}, {1024}})
      ->UseRealTime();
}

BENCHMARK_CAPTURE(attention, forward, 2, [](AttentionOperands& t) {
  t.forward();
})->Apply(attention_arguments);
BENCHMARK_CAPTURE(attention, backward, 5, [](AttentionOperands& t) {
  t.backward();
})->Apply(attention_arguments);
BENCHMARK_CAPTURE(attention, forward_backward, 7, [](AttentionOperands& t) {
  t.forward();
  t.backward();
})->Apply(attention_arguments);

void decode(benchmark::State& state) {
  const int64_t batch = 4, heads = 8, kv_heads = 2, max_len = state.range(1), dim = 64;
  const DType dtype = dtype_of_argument(state.range(0));
  Stream stream;
  Workspace workspace;
  const Tensor q = random_tensor({batch, heads, dim}, 1, dtype);
  const Tensor k = random_tensor({batch, kv_heads, max_len, dim}, 2, dtype);
  const Tensor v = random_tensor({batch, kv_heads, max_len, dim}, 3, dtype);
  const Tensor lengths = test::make_tensor(
      {batch}, std::vector<int32_t>(static_cast<size_t>(batch), static_cast<int32_t>(max_len)));
  Tensor out({batch, heads * dim}, dtype);
  CeilingReport report =
      copy_report(state, static_cast<double>(k.view().num_bytes() + v.view().num_bytes()));
  report.run([&] { decode_attention(stream, workspace, q, k, v, lengths, 0.125f, out); });
}
BENCHMARK(decode)
    ->Name("decode_attention")
    ->ArgNames({"bf16", "max_len"})
    ->ArgsProduct({dtype_arguments(), {4096}})
    ->UseRealTime();

}  // namespace
}  // namespace switchyard::bench
