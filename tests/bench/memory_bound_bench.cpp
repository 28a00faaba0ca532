#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <vector>

#include "bench/ceiling_report.h"
#include "kernels/basic/activation.h"
#include "kernels/moe/permute.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/optimizer/optimizer_step.h"
#include "kernels/vocabulary/cross_entropy.h"
#include "tests/support/test_tensors.h"

// Ops that the memory bounds: bytes are those that an op must read and write once. The ceiling is
// that of main memory; an op whose operands fit the caches can exceed it.
namespace switchyard::bench {
namespace {

using test::make_tensor;
using test::random_tensor;

constexpr int64_t kTokens = 8192;
constexpr int64_t kHidden = 512;

template <class... Tensors>
double bytes_of(const Tensors&... tensors) {
  return (static_cast<double>(tensors.view().num_bytes()) + ...);
}

DType dtype_of_argument(const benchmark::State& state) {
  return state.range(0) != 0 ? DType::bf16 : DType::f32;
}

void both_dtypes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgName("bf16")->Arg(0)->Arg(1)->UseRealTime();
}

void rms_norm_forward(benchmark::State& state) {
  const DType dtype = dtype_of_argument(state);
  Stream stream;
  const Tensor x = random_tensor({kTokens, kHidden}, 1, dtype);
  const Tensor delta = random_tensor(x.shape(), 2, dtype);
  const Tensor weight = random_tensor({kHidden}, 3);
  Tensor sum(x.shape(), dtype), y(x.shape(), dtype), rstd({kTokens}, DType::f32);
  CeilingReport report = copy_report(state, bytes_of(x, delta, sum, y));
  report.run([&] { switchyard::rms_norm_forward(stream, x, delta, weight, 1e-5f, sum, y, rstd); });
}
BENCHMARK(rms_norm_forward)->Apply(both_dtypes);

void rms_norm_backward(benchmark::State& state) {
  const DType dtype = dtype_of_argument(state);
  Stream stream;
  Workspace workspace;
  const Tensor x = random_tensor({kTokens, kHidden}, 1, dtype);
  const Tensor dy = random_tensor(x.shape(), 2, dtype);
  const Tensor weight = random_tensor({kHidden}, 3);
  const Tensor rstd = make_tensor({kTokens}, std::vector<float>(kTokens, 1.0f));
  Tensor dx(x.shape(), dtype), dweight({kHidden}, DType::f32);
  // dx is read and written.
  CeilingReport report = copy_report(state, bytes_of(x, dy, dx, dx));
  report.run(
      [&] { switchyard::rms_norm_backward(stream, workspace, dy, x, weight, rstd, dx, dweight); });
}
BENCHMARK(rms_norm_backward)->Apply(both_dtypes);

void swiglu_forward(benchmark::State& state) {
  const DType dtype = dtype_of_argument(state);
  Stream stream;
  const Tensor in = random_tensor({kTokens, 2 * kHidden}, 1, dtype);
  const Tensor row_scale = random_tensor({kTokens}, 2);
  Tensor out({kTokens, kHidden}, dtype);
  CeilingReport report = copy_report(state, bytes_of(in, out));
  report.run([&] { activation_forward(stream, Activation::swiglu, in, row_scale, out); });
}
BENCHMARK(swiglu_forward)->Apply(both_dtypes);

void swiglu_backward(benchmark::State& state) {
  const DType dtype = dtype_of_argument(state);
  Stream stream;
  const Tensor in = random_tensor({kTokens, 2 * kHidden}, 1, dtype);
  const Tensor dout = random_tensor({kTokens, kHidden}, 2, dtype);
  const Tensor row_scale = random_tensor({kTokens}, 3);
  Tensor din(in.shape(), dtype), drow_scale({kTokens}, DType::f32);
  CeilingReport report = copy_report(state, bytes_of(in, dout, din));
  report.run([&] {
    activation_backward(stream, Activation::swiglu, dout, in, row_scale, din, drow_scale);
  });
}
BENCHMARK(swiglu_backward)->Apply(both_dtypes);

constexpr int64_t kTopK = 8;

// The kTopK rows of every token, shuffled, because expert order spreads them, too.
std::vector<int32_t> shuffled_slots(int64_t tokens) {
  std::vector<int32_t> slots;
  for (int64_t i = 0; i < tokens * kTopK; ++i) slots.push_back(static_cast<int32_t>(i));
  std::shuffle(slots.begin(), slots.end(), std::mt19937(1));
  return slots;
}

void permute(benchmark::State& state) {
  const DType dtype = dtype_of_argument(state);
  const int64_t tokens = kTokens / kTopK;
  Stream stream;
  const Tensor x = random_tensor({tokens, kHidden}, 1, dtype);
  const Tensor members = make_tensor({kTokens}, shuffled_slots(tokens));
  Tensor y({kTokens, kHidden}, dtype);
  CeilingReport report = copy_report(state, bytes_of(y, y));
  report.run([&] { spread_rows(stream, x, {}, members, 0, y); });
}
BENCHMARK(permute)->Apply(both_dtypes);

void unpermute(benchmark::State& state) {
  const DType dtype = dtype_of_argument(state);
  const int64_t tokens = kTokens / kTopK;
  Stream stream;
  std::vector<int32_t> first_member;
  for (int64_t t = 0; t <= tokens; ++t) first_member.push_back(static_cast<int32_t>(t * kTopK));
  const Tensor x = random_tensor({kTokens, kHidden}, 1, dtype);
  const Tensor offsets = make_tensor({tokens + 1}, first_member);
  const Tensor members = make_tensor({kTokens}, shuffled_slots(tokens));
  Tensor y({tokens, kHidden}, dtype);
  CeilingReport report = copy_report(state, bytes_of(x, y));
  report.run([&] { sum_rows(stream, x, offsets, members, 0, y); });
}
BENCHMARK(unpermute)->Apply(both_dtypes);

// The two passes over the logits and the gradient. dlogits has the dtype of training.
void cross_entropy(benchmark::State& state) {
  const int64_t tokens = 1024, vocab = 16384;
  Stream stream;
  const Tensor logits = random_tensor({tokens, vocab}, 1);
  std::vector<int32_t> target_ids;
  for (int64_t t = 0; t < tokens; ++t) target_ids.push_back(static_cast<int32_t>(t * 7 % vocab));
  const Tensor targets = make_tensor({tokens}, target_ids);
  Tensor row_max({tokens}, DType::f32), sum_exp({tokens}, DType::f32);
  Tensor target_logit({tokens}, DType::f32), losses({tokens}, DType::f32);
  Tensor dlogits({tokens, vocab}, dtype_of_argument(state));
  CeilingReport report = copy_report(state, bytes_of(logits, logits, dlogits));
  report.run([&] {
    cross_entropy_forward(stream, logits, targets, 0, row_max, sum_exp, target_logit);
    cross_entropy_losses(stream, targets, row_max, sum_exp, target_logit, losses);
    cross_entropy_backward(stream, logits, targets, 0, row_max, sum_exp, 1.0f, dlogits);
  });
}
BENCHMARK(cross_entropy)->Apply(both_dtypes);

void adamw(benchmark::State& state) {
  const int64_t n = int64_t{16} << 20;
  const bool bf16 = state.range(0) != 0;
  Stream stream;
  const Tensor grad = random_tensor({n}, 1);
  Tensor main_params = random_tensor({n}, 2);
  Tensor exp_avg({n}, DType::f32), exp_avg_sq({n}, DType::f32);
  Tensor params({bf16 ? n : 0}, DType::bf16);
  const AdamWOptions options = {.lr = 1e-3f, .weight_decay = 0.1f, .step = 10};
  // The parameters and both moments are read and written.
  CeilingReport report = copy_report(
      state, bytes_of(grad, main_params, exp_avg, exp_avg_sq, main_params, exp_avg, exp_avg_sq) +
                 bytes_of(params));
  report.run([&] {
    adamw_step(stream, options, 1.0f, grad, main_params, exp_avg, exp_avg_sq,
               bf16 ? params.view() : TensorView());
  });
}
BENCHMARK(adamw)->Apply(both_dtypes);

}  // namespace
}  // namespace switchyard::bench
