// On a device that only counts (Device::counts_only), ops use workspaces as on a real device of the
// kind and check their arguments, but do nothing; an observer sees them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/rope.h"
#include "kernels/basic/activation.h"
#include "kernels/basic/combine_parts.h"
#include "kernels/basic/elementwise.h"
#include "kernels/basic/random.h"
#include "kernels/decode/gather_attention.h"
#include "kernels/decode/received_attention.h"
#include "kernels/decode/select_top_k.h"
#include "kernels/linear/matmul.h"
#include "kernels/linear/matmul_with_bias.h"
#include "kernels/moe/balance_loss.h"
#include "kernels/moe/exchange_plan.h"
#include "kernels/moe/permute.h"
#include "kernels/moe/router.h"
#include "kernels/moe/slot_products.h"
#include "kernels/norm/layer_norm.h"
#include "kernels/norm/projection_norm.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/optimizer/optimizer_step.h"
#include "kernels/runtime/host_mirror.h"
#include "kernels/runtime/stopwatch.h"
#include "kernels/runtime/to_device.h"
#include "kernels/runtime/work_observer.h"
#include "kernels/vocabulary/cross_entropy.h"
#include "kernels/vocabulary/embedding.h"
#include "tests/support/error_of.h"
#include "tests/support/method_scope.h"
#include "tests/support/test_device.h"

namespace switchyard {
namespace {

using test::error_of;
using testing::HasSubstr;

constexpr DType kF32 = DType::f32, kBf16 = DType::bf16, kI32 = DType::i32, kF64 = DType::f64;

// A device with a stream, a workspace and tensors for ops.
struct Bench {
  explicit Bench(Device on) : device(on), stream(on), workspace(on) {}

  TensorView tensor(const Shape& shape, DType dtype) {
    return tensors.emplace_back(shape, dtype, device);
  }
  TensorView f32(const Shape& shape) { return tensor(shape, kF32); }
  TensorView i32(const Shape& shape) { return tensor(shape, kI32); }
  TensorView filled(const Shape& shape, int32_t value) {
    const TensorView values = i32(shape);
    HostMirror mirror(values);
    std::fill_n(mirror.host().data<int32_t>(), values.num_elements(), value);
    mirror.upload(stream);
    return values;
  }

  Device device;
  Stream stream;
  switchyard::Workspace workspace;
  std::deque<switchyard::Tensor> tensors;
};

Device counted() { return counting_device(test::device().kind); }

// ---- Scratch -----------------------------------------------------------------------------------

struct ScratchCase {
  std::string name;
  std::function<void(Bench&)> run;
};

void attend(Bench& b, DType dtype, int64_t batch, int64_t heads, int64_t kv_heads, int64_t seq_len,
            int64_t head_dim, bool backward) {
  const Shape of_q{batch, heads, seq_len, head_dim}, of_k{batch, kv_heads, seq_len, head_dim};
  const Shape of_out{batch * seq_len, heads * head_dim};
  const TensorView q = b.tensor(of_q, dtype), k = b.tensor(of_k, dtype), v = b.tensor(of_k, dtype);
  const TensorView out = b.tensor(of_out, dtype), lse = b.f32({batch, heads, seq_len});
  if (!backward) return attention_forward(b.stream, b.workspace, q, k, v, {}, 0.5f, out, lse);
  attention_backward(b.stream, b.workspace, b.tensor(of_out, dtype), q, k, v, out, lse, {}, 0.5f,
                     b.tensor(of_q, dtype), b.tensor(of_k, dtype), b.tensor(of_k, dtype));
}

std::vector<ScratchCase> attention_cases() {
  std::vector<ScratchCase> cases;
  for (const DType dtype : {kF32, kBf16}) {
    for (const int64_t seq_len : {1, 33, 160}) {
      for (const bool backward : {false, true}) {
        // Without cuDNN the second is the first again.
        for (const auto& [method, name] : names_of(AttentionMethod{})) {
          cases.push_back({fmt::format("attention_{}_{}_{}_{}", backward ? "backward" : "forward",
                                       to_string(dtype), seq_len, name),
                           [=](Bench& b) {
                             const test::AttentionScope scope(method);
                             attend(b, dtype, 2, 4, 2, seq_len, 64, backward);
                           }});
        }
      }
    }
  }
  return cases;
}

// Every sequence is as long as its cache, because the largest need of a step is counted.
std::vector<ScratchCase> decode_cases() {
  std::vector<ScratchCase> cases;
  for (const int max_len : {1, 70, 1500, 9000}) {
    cases.push_back({fmt::format("decode_attention_{}", max_len), [=](Bench& b) {
                       const TensorView cache = b.f32({2, 2, max_len, 32});
                       decode_attention(b.stream, b.workspace, b.f32({2, 4, 32}), cache, cache,
                                        b.filled({2}, max_len), 1.0f, b.f32({2, 128}));
                     }});
    cases.push_back({fmt::format("gather_attention_{}", max_len), [=](Bench& b) {
                       const TensorView cache = b.f32({2, 2, max_len, 32});
                       const int64_t most = (max_len + 1) / 2;
                       gather_attention(b.stream, b.workspace, b.f32({2, 4, 32}), cache, cache,
                                        b.i32({2, 2, most}),
                                        b.filled({2}, static_cast<int32_t>(most)), {}, 1.0f,
                                        b.f32({2, 128}));
                     }});
    cases.push_back({fmt::format("received_attention_{}", max_len), [=](Bench& b) {
                       const Shape of_k{2, 2, max_len, 8};
                       received_attention(b.stream, b.workspace, b.f32({2, 4, max_len, 8}),
                                          b.f32(of_k), b.f32({2, 4, max_len}), max_len - 1, 1.0f,
                                          b.f32({2, 2, max_len}));
                     }});
    cases.push_back({fmt::format("evict_and_score_{}", max_len), [=](Bench& b) {
                       evict_and_score(b.stream, b.workspace, b.f32({2, 4, 8}),
                                       b.f32({2, 2, max_len, 8}), b.i32({2, 2, max_len}),
                                       b.filled({2}, 1), b.filled({2}, max_len), 1.0f,
                                       b.f32({2, 2, max_len}));
                     }});
    for (const DType dtype : {kF32, DType::u16}) {
      cases.push_back({fmt::format("select_top_k_{}_{}", to_string(dtype), max_len), [=](Bench& b) {
                         select_top_k(b.stream, b.workspace, b.tensor({2, 2, max_len}, dtype),
                                      b.filled({2}, max_len), b.filled({2}, 1), 0, 0,
                                      b.i32({2, 2, 1}));
                       }});
    }
  }
  return cases;
}

// Widths for every way in which a CUDA kernel divides a row; row counts around the CPU's blocks.
std::vector<ScratchCase> norm_cases() {
  std::vector<ScratchCase> cases;
  for (const DType dtype : {kF32, kBf16}) {
    for (const int64_t rows : {1, 64, 65, 1100}) {
      for (const int64_t hidden : {8, 33, 512, 1030, 4100}) {
        if (rows > 65 && hidden > 33) continue;
        const std::string shape = fmt::format("{}_{}_{}", to_string(dtype), rows, hidden);
        cases.push_back({"rms_norm_backward_" + shape, [=](Bench& b) {
                           const Shape x{rows, hidden};
                           rms_norm_backward(b.stream, b.workspace, b.tensor(x, dtype),
                                             b.tensor(x, dtype), b.f32({hidden}), b.f32({rows}),
                                             b.tensor(x, dtype), b.f32({hidden}));
                         }});
        cases.push_back({"layer_norm_backward_" + shape, [=](Bench& b) {
                           const Shape x{rows, hidden};
                           layer_norm_backward(b.stream, b.workspace, b.tensor(x, dtype),
                                               b.tensor(x, dtype), b.f32({hidden}), b.f32({rows}),
                                               b.f32({rows}), b.tensor(x, dtype), b.f32({hidden}),
                                               b.f32({hidden}));
                         }});
        cases.push_back({"projection_norm_backward_" + shape, [=](Bench& b) {
                           const Shape x{2, 3, rows, hidden};
                           projection_norm_backward(
                               b.stream, b.workspace, b.tensor(x, dtype), b.tensor(x, dtype),
                               b.f32({2 * rows}), b.f32({2 * rows}), b.f32({3 * hidden}),
                               3 * hidden, 1e-5f, b.tensor(x, dtype), b.f32({3 * hidden}));
                         }});
        cases.push_back({"add_bias_backward_" + shape, [=](Bench& b) {
                           add_bias_backward(b.stream, b.workspace, b.tensor({rows, hidden}, dtype),
                                             b.f32({hidden}));
                         }});
      }
    }
  }
  return cases;
}

void plan_sending(Bench& b, int64_t tokens, int64_t top_k, int64_t ranks, int64_t chunks) {
  const int64_t slots = tokens * top_k;
  std::vector<int64_t> first_tokens(static_cast<size_t>(chunks), 0);
  first_tokens.push_back(tokens);
  plan_sends(b.stream, b.workspace, b.i32({tokens, top_k}), b.f32({tokens, top_k}), first_tokens,
             /*local_experts=*/2, /*deduplicate=*/true,
             {.counts = b.tensor({ranks, chunks, 3}, DType::i64),
              .row_of_slot = b.i32({slots}),
              .assignment_of_slot = b.i32({slots}),
              .assignments = b.i32({slots, kAssignmentValues})});
}

void route(Bench& b, int64_t sequences, int64_t seq_len, int64_t experts, bool counting) {
  const int64_t tokens = sequences * seq_len;
  const Shape of_sequences{sequences, experts};
  router_forward(b.stream, b.workspace, {.top_k = 2}, {.first_token = 0, .seq_len = seq_len},
                 b.f32({tokens, experts}), {}, b.f32({tokens, experts}), b.f32({tokens}),
                 b.i32({tokens, 2}), b.f32({tokens, 2}),
                 counting ? b.f32(of_sequences) : TensorView(),
                 counting ? b.f32(of_sequences) : TensorView());
}

std::vector<ScratchCase> moe_and_embedding_cases() {
  std::vector<ScratchCase> cases;
  for (const int64_t n : {1, 33, 257}) {
    cases.push_back(
        {fmt::format("plan_sends_{}", n), [=](Bench& b) { plan_sending(b, n, 3, 4, 1); }});
    cases.push_back({fmt::format("plan_sends_to_many_{}", n),
                     [=](Bench& b) { plan_sending(b, n, 3, 300, 2); }});
    cases.push_back({fmt::format("plan_sends_of_segments_{}", n),
                     [=](Bench& b) { plan_sending(b, 1000 + n, 2, 4, 3); }});
    cases.push_back(
        {fmt::format("router_forward_{}", n), [=](Bench& b) { route(b, 2, n, 8, false); }});
    cases.push_back(
        {fmt::format("router_forward_counts_{}", n), [=](Bench& b) { route(b, 2, n, 8, true); }});
    for (const DropPolicy policy : {DropPolicy::lowest_weight, DropPolicy::latest_position}) {
      cases.push_back(
          {fmt::format("drop_over_capacity_{}_{}", to_string(policy), n), [=](Bench& b) {
             drop_over_capacity(b.stream, b.workspace, policy, 2, n, 40, b.i32({3 * n, 2}),
                                b.f32({3 * n, 2}), b.i32({3 * n, 2}), b.tensor({1}, kF64));
           }});
    }
    for (const int64_t rows : {5, 700}) {
      cases.push_back({fmt::format("embedding_backward_{}_of_{}", n, rows), [=](Bench& b) {
                         embedding_backward(b.stream, b.workspace, b.i32({n}), b.f32({n, 16}), 0,
                                            b.f32({rows, 16}));
                       }});
    }
  }
  return cases;
}

class CountedScratchTest : public testing::TestWithParam<ScratchCase> {};

TEST_P(CountedScratchTest, IsWhatTheBodyTakes) {
  Bench real(test::device()), counting(counted());
  for (Bench* bench : {&real, &counting}) bench->workspace.take({100}, kF32);

  GetParam().run(real);
  real.stream.synchronize();
  GetParam().run(counting);

  EXPECT_EQ(counting.workspace.high_water(), real.workspace.high_water());
  EXPECT_EQ(counting.workspace.live_bytes(), real.workspace.live_bytes());
}

std::string name_of(const testing::TestParamInfo<ScratchCase>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Attention, CountedScratchTest, testing::ValuesIn(attention_cases()),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Decode, CountedScratchTest, testing::ValuesIn(decode_cases()), name_of);
INSTANTIATE_TEST_SUITE_P(Norm, CountedScratchTest, testing::ValuesIn(norm_cases()), name_of);
INSTANTIATE_TEST_SUITE_P(MoeAndEmbedding, CountedScratchTest,
                         testing::ValuesIn(moe_and_embedding_cases()), name_of);

// ---- Memory ------------------------------------------------------------------------------------

class CountingTest : public testing::Test {
 protected:
  Bench bench_{counted()};
};

TEST_F(CountingTest, TensorsOfAnySizeCostNothingAndAreThere) {
  // 2 PiB each: more than fits an address space.
  switchyard::Tensor weights({int64_t{1} << 25, int64_t{1} << 24}, kF32, counted());
  const switchyard::Tensor more({int64_t{1} << 49}, kF32, counted());

  EXPECT_TRUE(weights);
  EXPECT_TRUE(more);
  EXPECT_EQ(weights.view().num_bytes(), size_t{1} << 51);
  EXPECT_TRUE(weights.view().rows(1 << 24, 3).reshape({3 << 24}));
  EXPECT_FALSE(switchyard::Tensor({0}, kF32, counted()));
}

TEST_F(CountingTest, AWorkspaceCountsAsThatOfTheDevice) {
  switchyard::Workspace real(test::device());
  const auto use = [](switchyard::Workspace& workspace) {
    std::vector<size_t> figures;
    const auto note = [&] {
      figures.push_back(workspace.live_bytes());
      figures.push_back(workspace.high_water());
    };
    for (const int64_t n : {1, 63, 64, 65, 0, 3 << 20}) {
      workspace.take({n}, kBf16);
      note();
    }
    const auto mark = workspace.mark();
    workspace.take({1000, 1000}, kF32);
    note();
    workspace.release(mark);
    note();
    workspace.reset();
    workspace.take({7}, DType::u8);
    note();
    return figures;
  };

  EXPECT_EQ(use(bench_.workspace), use(real));
}

TEST_F(CountingTest, TensorsOfAWorkspaceDoNotOverlap) {
  const TensorView a = bench_.workspace.take({10}, kF32), b = bench_.workspace.take({10}, kF32);

  EXPECT_EQ(static_cast<std::byte*>(b.raw()) - static_cast<std::byte*>(a.raw()), 64);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.raw()) % 64, 0u);
}

TEST_F(CountingTest, AMirrorHoldsWhatTheHostWrote) {
  const TensorView tensor = bench_.f32({3});
  HostMirror mirror(tensor);
  EXPECT_EQ(mirror.host().data<float>()[1], 0.0f);

  mirror.host().data<float>()[1] = 5.0f;
  mirror.upload(bench_.stream);
  mirror.download(bench_.stream);

  EXPECT_EQ(mirror.host().data<float>()[1], 5.0f);
}

TEST_F(CountingTest, CopiesBetweenItAndTheHostDoNothing) {
  std::vector<float> values = {1.0f, 2.0f};
  const TensorView host = view_of(std::span(values));

  copy(bench_.stream, host, bench_.f32({2}));
  copy(bench_.stream, bench_.f32({2}), host);

  EXPECT_EQ(values, (std::vector<float>{1.0f, 2.0f}));
}

TEST_F(CountingTest, HostValuesTakeAsMuchAsOnTheDevice) {
  Bench real(test::device());

  for (Bench* bench : {&real, &bench_}) {
    const ConstTensorView moved =
        to_device(bench->stream, bench->workspace, std::vector<float>(100));
    EXPECT_TRUE(moved);
    EXPECT_EQ(moved.device(), bench->device);
  }

  EXPECT_EQ(bench_.workspace.live_bytes(), real.workspace.live_bytes());
}

TEST_F(CountingTest, StreamsEventsAndStopwatchesDoNothing) {
  Event begin(counted(), Event::Timing::on), end(counted(), Event::Timing::on);
  Stopwatch stopwatch(counted());

  begin.record(bench_.stream);
  { const ScopedTimer timed(stopwatch, bench_.stream); }
  end.record(bench_.stream);
  bench_.stream.wait(end);
  end.synchronize();
  bench_.stream.synchronize();
  synchronize(counted());

  EXPECT_TRUE(end.has_finished());
  EXPECT_EQ(end.seconds_since(begin), 0.0);
  EXPECT_EQ(stopwatch.take_seconds(), 0.0);
}

TEST_F(CountingTest, ItsNameSaysSo) {
  EXPECT_EQ(to_string(counting_device(DeviceKind::cpu)), "cpu (counted only)");
  EXPECT_EQ(to_string(counting_device(DeviceKind::cuda)), "cuda:0 (counted only)");
  EXPECT_NE(counted(), test::device());
}

// ---- Ops ---------------------------------------------------------------------------------------

TEST_F(CountingTest, OpsRefuseWrongShapesAndTensorsOfOtherDevices) {
  const TensorView a = bench_.f32({4, 8}), b = bench_.f32({8, 4});
  switchyard::Tensor real({4, 8}, kF32, test::device());

  EXPECT_THAT(error_of([&] {
                rms_norm_forward(bench_.stream, a, {}, bench_.f32({7}), 1e-5f, {}, a,
                                 bench_.f32({4}));
              }),
              HasSubstr("weight has shape [7], expected [8]"));
  EXPECT_THAT(error_of([&] { add(bench_.stream, b, a); }), HasSubstr("y has shape"));
  EXPECT_THAT(error_of([&] { add(bench_.stream, real, a); }),
              HasSubstr("is on " + to_string(test::device()) + ", the stream on"));
}

TEST_F(CountingTest, ElementwiseOpsAcceptItsTensors) {
  Stream& s = bench_.stream;
  const TensorView x = bench_.f32({4, 8}), y = bench_.f32({4, 8}),
                   narrow = bench_.tensor({4, 8}, kBf16);
  const TensorView total = bench_.tensor({1}, kF64);

  cast(s, x, narrow);
  copy(s, x, y);
  add(s, x, y);
  fill_zero(s, y);
  scale(s, 2.0f, y);
  add_bias(s, bench_.f32({8}), y);
  add_sum(s, x, 1.0, total);
  add_sum_of_squares(s, x, 1.0, total);
  add_column_sums(s, x, bench_.tensor({8}, kF64));
  activation_forward(s, Activation::swiglu, bench_.f32({4, 16}), bench_.f32({4}), y);
  activation_backward(s, Activation::swiglu, y, bench_.f32({4, 16}), bench_.f32({4}),
                      bench_.f32({4, 16}), bench_.f32({4}));
  const std::vector<ConstTensorView> parts = {x, y};
  combine_parts(s, parts, ReduceOp::sum, y);
  init_normal(s, {1, 2}, 1.0f, {4, 8}, {0, 0}, y);
}

TEST_F(CountingTest, OpsOfATrainingStepAcceptItsTensors) {
  Stream& s = bench_.stream;
  const TensorView x = bench_.f32({4, 8}), y = bench_.f32({4, 8}), of_rows = bench_.f32({4});
  const RopeTable rope = make_rope_table(s, 2, {.head_dim = 4});
  const TensorView qkv = bench_.f32({4, 16}), q = bench_.f32({2, 2, 2, 4}),
                   k = bench_.f32({2, 1, 2, 4});

  embedding_forward(s, bench_.i32({4}), bench_.f32({10, 8}), 0, x);
  rms_norm_forward(s, x, y, bench_.f32({8}), 1e-5f, x, y, of_rows);
  layer_norm_forward(s, x, y, bench_.f32({8}), bench_.f32({8}), 1e-5f, x, y, of_rows, of_rows);
  split_qkv_forward(s, qkv, rope.cos, rope.sin, 0, q, k, k);
  split_qkv_backward(s, q, k, k, rope.cos, rope.sin, qkv);
  rope_in_place(s, rope.cos, rope.sin, 0, false, q);
  projection_sums(s, q, q, bench_.f32({8}), of_rows);
  projection_norm_forward(s, q, of_rows, bench_.f32({8}), 8, 1e-5f, q);
  cross_entropy_forward(s, x, bench_.i32({4}), 0, of_rows, of_rows, of_rows);
  cross_entropy_rescale(s, of_rows, of_rows, of_rows);
  cross_entropy_losses(s, bench_.i32({4}), of_rows, of_rows, of_rows, of_rows);
  cross_entropy_backward(s, x, bench_.i32({4}), 0, of_rows, of_rows, 1.0f, y);
  adamw_step(s, {.lr = 1e-3f}, 1.0f, x, x, y, y, bench_.tensor({4, 8}, kBf16));
  sgd_step(s, {.lr = 1e-3f}, 1.0f, x, x, y, {});
}

TEST_F(CountingTest, OpsOfMixturesAcceptItsTensors) {
  Stream& s = bench_.stream;
  const TensorView x = bench_.f32({4, 8}), of_experts = bench_.f32({2, 6});
  const TensorView idx = bench_.i32({4, 2}), weights = bench_.f32({4, 2});
  const TensorView logits = bench_.f32({4, 6}), of_rows = bench_.f32({4});

  router_backward(s, {.top_k = 2}, {.first_token = 0, .seq_len = 2}, logits, logits, of_rows, idx,
                  weights, of_experts, 0.0f, logits);
  drop_over_capacity(s, bench_.workspace, DropPolicy::lowest_weight, 1, 2, 6, idx, weights,
                     bench_.i32({4, 2}), bench_.tensor({1}, kF64));
  balance_loss(s, of_experts, 4.0, of_experts, 0.25, 0.1, of_experts, bench_.tensor({1}, kF64));
  gather_rows(s, x, bench_.i32({5}), bench_.f32({5, 8}));
  spread_rows(s, x, bench_.i32({5}), bench_.i32({5}), 0, bench_.f32({5, 8}));
  spread_rows(s, x, {}, bench_.i32({8}), 0, bench_.f32({5, 8}));
  sum_rows(s, bench_.f32({5, 8}), bench_.i32({5}), bench_.i32({5}), 0, x);
  sum_rows(s, bench_.f32({5, 8}), {}, bench_.i32({8}), 0, x);
  sum_rows(s, bench_.f32({8, 8}), {}, {}, 0, x);
  slot_products(s, x, idx, bench_.f32({6, 3, 8}), bench_.f32({8, 3}));
  const TensorView assignments = bench_.i32({5, kAssignmentValues});
  const TensorView counts = bench_.tensor({2, 3, 4}, DType::i64);
  plan_arrivals(s, assignments, counts, {bench_.i32({5}), bench_.i32({5}), bench_.f32({5})});
  plan_relay(s, assignments, counts, {bench_.i32({4, 2}), bench_.f32({4, 2}), bench_.i32({5})});
  gather_values(s, of_rows, bench_.i32({5}), bench_.f32({5}));
  scatter_values(s, bench_.f32({5}), bench_.i32({5}), of_rows);
}

// ---- What an observer sees ---------------------------------------------------------------------

struct SeenOp {
  std::string name;
  int64_t bytes;
  bool operator==(const SeenOp&) const = default;
};

class Seen final : public WorkObserver {
 public:
  void products(const Products& p) override {
    all_products.push_back(p);
    flops += p.flops();
  }
  void attention(const AttentionProducts& p) override { attention_flops += p.flops(); }
  void begin_op(const char* op, int64_t bytes) override { ops.push_back({op, bytes}), ++open; }
  void end_op() override { --open; }

  std::vector<Products> all_products;
  std::vector<SeenOp> ops;
  double flops = 0.0, attention_flops = 0.0;
  int open = 0;
};

class ObserverTest : public CountingTest {
 protected:
  ObserverTest() { bench_.stream.set_observer(&seen_); }
  ~ObserverTest() override { bench_.stream.set_observer(nullptr); }

  Seen seen_;
};

TEST_F(ObserverTest, ProductsAreTwoOperationsPerMultiplication) {
  const TensorView a = bench_.f32({3, 5}), b = bench_.f32({7, 5}), c = bench_.f32({3, 7});

  matmul(bench_.stream, a, Transpose::no, b, Transpose::yes, Accumulate::no, c);
  EXPECT_EQ(seen_.flops, 2.0 * 3 * 7 * 5);
  matmul(bench_.stream, c, Transpose::yes, a, Transpose::no, Accumulate::yes, b);
  EXPECT_EQ(seen_.flops, 4.0 * 3 * 7 * 5);
  matmul_with_bias(bench_.stream, a, Transpose::no, b, Transpose::yes, bench_.f32({7}), c);

  EXPECT_EQ(seen_.flops, 6.0 * 3 * 7 * 5);
  EXPECT_EQ(seen_.attention_flops, 0.0);
  ASSERT_EQ(seen_.all_products.size(), 3U);
  EXPECT_EQ(seen_.all_products[0].kind, ProductKind::forward);
  EXPECT_EQ(seen_.all_products[1].kind, ProductKind::weight_gradient);
  EXPECT_EQ(seen_.all_products[1].m, 7);
  EXPECT_EQ(seen_.all_products[1].n, 5);
  EXPECT_EQ(seen_.all_products[1].k, 3);
}

TEST_F(ObserverTest, GroupedProductsCountTheRowsOfEveryExpert) {
  const std::vector<int64_t> row_offsets = {0, 4, 4, 10};
  const TensorView x = bench_.f32({10, 5}), y = bench_.f32({10, 7}), weight = bench_.f32({3, 7, 5});

  grouped_linear_forward(bench_.stream, x, weight, row_offsets, y);
  EXPECT_EQ(seen_.flops, 2.0 * 10 * 7 * 5);
  grouped_linear_backward_input(bench_.stream, y, weight, row_offsets, x);
  EXPECT_EQ(seen_.flops, 4.0 * 10 * 7 * 5);
  grouped_linear_backward_weight(bench_.stream, y, x, row_offsets, Accumulate::yes, weight);

  EXPECT_EQ(seen_.flops, 6.0 * 10 * 7 * 5);
  ASSERT_EQ(seen_.all_products.size(), 3U);
  for (const Products& p : seen_.all_products) {
    EXPECT_THAT(p.row_offsets, testing::ElementsAreArray(row_offsets));
  }
  EXPECT_EQ(seen_.all_products[0].m, 10);
  EXPECT_EQ(seen_.all_products[1].n, 5);
  EXPECT_EQ(seen_.all_products[2].k, 10);
}

// Of 4 tokens, token t sees t + 1: 10 pairs of each of 2 sequences and 6 heads.
TEST_F(ObserverTest, AttentionCountsTheCausalHalfOfItsProducts) {
  const double of_one_product = 2.0 * 2 * 6 * 10 * 16;

  attend(bench_, kF32, /*batch=*/2, /*heads=*/6, /*kv_heads=*/3, /*seq_len=*/4, /*head_dim=*/16,
         /*backward=*/false);
  EXPECT_EQ(seen_.attention_flops, 2 * of_one_product);
  seen_.attention_flops = 0.0;
  attend(bench_, kF32, 2, 6, 3, 4, 16, /*backward=*/true);

  EXPECT_EQ(seen_.attention_flops, 4 * of_one_product);
  EXPECT_EQ(seen_.flops, 0.0);
}

TEST_F(ObserverTest, AnOpHasTheBytesOfItsTensors) {
  const TensorView a = bench_.f32({3, 5}), b = bench_.f32({7, 5}), c = bench_.f32({3, 7});
  matmul(bench_.stream, a, Transpose::no, b, Transpose::yes, Accumulate::no, c);
  fill_zero(bench_.stream, c);

  EXPECT_THAT(seen_.ops, testing::ElementsAre(SeenOp{"matmul", 4 * (15 + 35 + 21)},
                                              SeenOp{"fill_zero", 4 * 21}));
  EXPECT_EQ(seen_.open, 0);
}

TEST(RealDeviceTest, IsObservedToo) {
  test::Stream stream;
  Seen seen;
  Tensor values({5}, DType::f32, stream.device());

  stream.set_observer(&seen);
  fill_zero(stream, values);
  stream.set_observer(nullptr);
  fill_zero(stream, values);

  EXPECT_THAT(seen.ops, testing::ElementsAre(SeenOp{"fill_zero", 20}));
}

}  // namespace
}  // namespace switchyard
