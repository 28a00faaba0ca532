// Measures every op on a CUDA device beside the device's ceilings of the same run and prints a
// Markdown table. `device_bench [OP ...]` runs the ops whose names contain one of the words.
//
// An op is launched many times in a row between two events of the device, so that no launch waits
// for the host; the time is the median of several such stretches. Operands are random and several
// times as large as the cache.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_method.h"
#include "kernels/attention/rope.h"
#include "kernels/basic/activation.h"
#include "kernels/basic/elementwise.h"
#include "kernels/basic/random.h"
#include "kernels/cuda/cudnn_graphs.h"
#include "kernels/linear/expert_product_method.h"
#include "kernels/linear/grouped_activation.h"
#include "kernels/linear/matmul.h"
#include "kernels/moe/exchange_plan.h"
#include "kernels/moe/permute.h"
#include "kernels/moe/router.h"
#include "kernels/moe/slot_products.h"
#include "kernels/norm/layer_norm.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/optimizer/optimizer_step.h"
#include "kernels/runtime/ceiling.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/stopwatch.h"
#include "kernels/vocabulary/cross_entropy.h"
#include "kernels/vocabulary/embedding.h"

namespace switchyard::bench {
namespace {

constexpr DType kBf16 = DType::bf16, kF32 = DType::f32, kI32 = DType::i32;

template <class... Tensors>
double bytes_of(const Tensors&... tensors) {
  return (static_cast<double>(tensors.view().num_bytes()) + ...);
}

class DeviceBench {
 public:
  explicit DeviceBench(std::vector<std::string> words)
      : words_(std::move(words)),
        stream_(Device{DeviceKind::cuda, 0}),
        workspace_(stream_.device()) {
    bf16_ceiling_ = measure_product_ceiling(stream_, kBf16);
    f32_ceiling_ = measure_product_ceiling(stream_, kF32);
    copy_ceiling_ = measure_copy_ceiling(stream_);
    fmt::print(
        "Ceilings: products {:.1f} TFLOP/s in bf16 and {:.1f} in f32, copies {:.0f} GB/s\n\n",
        1e-12 * bf16_ceiling_, 1e-12 * f32_ceiling_, 1e-9 * copy_ceiling_);
    fmt::print("| op | shape | us | rate | of the ceiling |\n|---|---|---|---|---|\n");
  }

  void run_all() {
    norms();
    rope();
    embedding();
    router(131072, 64, 8);
    router(65536, 512, 22);
    permutation();
    activations();
    cross_entropy();
    flat_buffers();
    decode();
    decoded_experts(2048, 512);
    decoded_experts(512, 2048);
    dense_products();
    grouped_products(2048, 512);
    grouped_products(512, 2048);
    activated_products(Activation::gelu, 2048, 512);
    activated_products(Activation::gelu, 512, 2048);
    activated_products(Activation::swiglu, 512, 2048);
    for (const int64_t head_dim : {64, 128}) {
      for (const int64_t seq_len : {2048, 4096, 8192}) attention(seq_len, head_dim, 16);
    }
    attention(4096, 128, 4);
  }

 private:
  static constexpr int64_t kTokens = 16384, kHidden = 2048;
  static constexpr int64_t kExperts = 64, kExpertRows = kTokens * 8;

  Tensor random(const Shape& shape, DType dtype, float std = 1.0f) {
    const Shape flat{shape.num_elements()};
    Tensor drawn(flat, kF32, stream_.device()), tensor(shape, dtype, stream_.device());
    init_normal(stream_, {seed_++, 0}, std, flat, Shape({0}), drawn);
    cast(stream_, drawn, tensor.view().reshape(flat));
    stream_.synchronize();
    return tensor;
  }
  Tensor empty(const Shape& shape, DType dtype) { return Tensor(shape, dtype, stream_.device()); }
  Tensor indices(const Shape& shape, const std::vector<int32_t>& values) {
    Tensor tensor(shape, kI32, stream_.device());
    copy(stream_, view_of(std::span(values)), tensor.view().reshape({shape.num_elements()}));
    stream_.synchronize();
    return tensor;
  }

  bool is_wanted(const std::string& op) const {
    return words_.empty() || std::any_of(words_.begin(), words_.end(), [&](const auto& word) {
             return op.find(word) != std::string::npos;
           });
  }

  // Seconds of one run: the median of stretches of about 10 ms.
  double time(const std::function<void()>& run) {
    Stopwatch stopwatch(stream_.device());
    const auto stretch = [&](int runs) {
      stopwatch.start(stream_);
      for (int i = 0; i < runs; ++i) run();
      stopwatch.stop(stream_);
      return stopwatch.take_seconds() / runs;
    };
    run();
    const int runs = std::clamp(static_cast<int>(0.01 / stretch(2)), 2, 200);
    std::vector<double> seconds;
    for (int i = 0; i < 5; ++i) seconds.push_back(stretch(runs));
    std::sort(seconds.begin(), seconds.end());
    return seconds[2];
  }

  void memory_row(const std::string& op, const std::string& shape, double bytes,
                  const std::function<void()>& run) {
    if (!is_wanted(op)) return;
    const double seconds = time(run), rate = bytes / seconds;
    fmt::print("| {} | {} | {:.1f} | {:.0f} GB/s | {:.1f} % |\n", op, shape, 1e6 * seconds,
               1e-9 * rate, 100.0 * rate / copy_ceiling_);
    std::fflush(stdout);
  }

  void product_row(const std::string& op, const std::string& shape, double flops, DType dtype,
                   const std::function<void()>& run) {
    if (!is_wanted(op)) return;
    const double seconds = time(run), rate = flops / seconds;
    fmt::print("| {} | {} | {:.1f} | {:.1f} TFLOP/s | {:.1f} % |\n", op, shape, 1e6 * seconds,
               1e-12 * rate, 100.0 * rate / (dtype == kBf16 ? bf16_ceiling_ : f32_ceiling_));
    std::fflush(stdout);
  }

  void norms();
  void rope();
  void embedding();
  void router(int64_t tokens, int64_t experts, int top_k);
  void permutation();
  void activations();
  void cross_entropy();
  void flat_buffers();
  void decode();
  void decoded_experts(int64_t in, int64_t out);
  void dense_products();
  void grouped_products(int64_t in, int64_t out);
  void activated_products(Activation activation, int64_t width, int64_t ffn);
  void attention(int64_t seq_len, int64_t head_dim, int64_t kv_heads);

  std::vector<std::string> words_;
  Stream stream_;
  Workspace workspace_;
  uint64_t seed_ = 1;
  double bf16_ceiling_ = 0.0, f32_ceiling_ = 0.0;  // FLOP/s
  double copy_ceiling_ = 0.0;                      // bytes/s
};

void DeviceBench::norms() {
  if (!is_wanted("norm")) return;
  const std::string shape = fmt::format("{} x {} bf16", kTokens, kHidden);
  const Tensor x = random({kTokens, kHidden}, kBf16), delta = random(x.shape(), kBf16);
  const Tensor weight = random({kHidden}, kF32), bias = random({kHidden}, kF32);
  Tensor sum = empty(x.shape(), kBf16), y = empty(x.shape(), kBf16), dx = random(x.shape(), kBf16);
  Tensor mean = empty({kTokens}, kF32), rstd = empty({kTokens}, kF32);
  Tensor dweight = empty({kHidden}, kF32), dbias = empty({kHidden}, kF32);
  // dx is read and written.
  memory_row("rms_norm forward, with residual add", shape, bytes_of(x, delta, sum, y),
             [&] { rms_norm_forward(stream_, x, delta, weight, 1e-5f, sum, y, rstd); });
  memory_row("rms_norm backward", shape, bytes_of(delta, x, dx, dx),
             [&] { rms_norm_backward(stream_, workspace_, delta, x, weight, rstd, dx, dweight); });
  memory_row("layer_norm forward, with residual add", shape, bytes_of(x, delta, sum, y), [&] {
    layer_norm_forward(stream_, x, delta, weight, bias, 1e-5f, sum, y, mean, rstd);
  });
  memory_row("layer_norm backward", shape, bytes_of(delta, x, dx, dx), [&] {
    layer_norm_backward(stream_, workspace_, delta, x, weight, mean, rstd, dx, dweight, dbias);
  });
}

void DeviceBench::rope() {
  if (!is_wanted("split_qkv")) return;
  constexpr int64_t kBatch = 8, kSeq = 2048, kHeads = 16, kKvHeads = 4, kDim = 128;
  const RopeTable table = make_rope_table(stream_, kSeq, {.head_dim = kDim});
  const Tensor qkv = random({kBatch * kSeq, (kHeads + 2 * kKvHeads) * kDim}, kBf16);
  Tensor q = empty({kBatch, kHeads, kSeq, kDim}, kBf16);
  Tensor k = empty({kBatch, kKvHeads, kSeq, kDim}, kBf16), v = empty(k.shape(), kBf16);
  Tensor dqkv = empty(qkv.shape(), kBf16);
  const std::string shape =
      fmt::format("{} x ({} + 2 x {}) x {} bf16", kBatch * kSeq, kHeads, kKvHeads, kDim);
  memory_row("split_qkv forward, with rope", shape, bytes_of(qkv, q, k, v),
             [&] { split_qkv_forward(stream_, qkv, table.cos, table.sin, 0, q, k, v); });
  memory_row("split_qkv backward, with rope", shape, bytes_of(q, k, v, dqkv),
             [&] { split_qkv_backward(stream_, q, k, v, table.cos, table.sin, dqkv); });
}

void DeviceBench::embedding() {
  if (!is_wanted("embedding")) return;
  constexpr int64_t kVocab = 50304;
  std::mt19937 engine(1);
  std::vector<int32_t> values(kTokens);
  for (int32_t& id : values) id = static_cast<int32_t>(engine() % kVocab);
  const Tensor ids = indices({kTokens}, values), table = random({kVocab, kHidden}, kBf16);
  Tensor out = random({kTokens, kHidden}, kBf16), dtable = empty({kVocab, kHidden}, kF32);
  const std::string shape = fmt::format("{} of {} x {} bf16", kTokens, kVocab, kHidden);
  memory_row("embedding forward", shape, 2 * bytes_of(out),
             [&] { embedding_forward(stream_, ids, table, 0, out); });
  // Each token's row of `out` is read; the rows of dtable are read and written in f32.
  memory_row("embedding backward", shape, 5 * bytes_of(out),
             [&] { embedding_backward(stream_, workspace_, ids, out, 0, dtable); });
}

void DeviceBench::router(int64_t tokens, int64_t experts, int top_k) {
  if (!is_wanted("router") && !is_wanted("plan_sends")) return;
  constexpr int64_t kSeq = 2048;
  const TokenRange range{0, kSeq};
  const RouterOptions options{.top_k = top_k, .normalize_topk = true};
  const Tensor logits = random({tokens, experts}, kF32);
  Tensor scores = empty(logits.shape(), kF32), lse = empty({tokens}, kF32);
  Tensor idx = empty({tokens, top_k}, kI32), weights = empty(idx.shape(), kF32);
  Tensor counts = empty({tokens / kSeq, experts}, kF32), prob_sums = empty(counts.shape(), kF32);
  Tensor dlogits = empty(logits.shape(), kF32);
  const std::string shape = fmt::format("{} x {}, top {}", tokens, experts, top_k);
  memory_row("router forward, with statistics", shape, bytes_of(logits, scores, lse, idx, weights),
             [&] {
               router_forward(stream_, workspace_, options, range, logits, {}, scores, lse, idx,
                              weights, counts, prob_sums);
             });
  memory_row("router backward", shape, bytes_of(logits, scores, lse, idx, weights, dlogits), [&] {
    router_backward(stream_, options, range, logits, scores, lse, idx, weights, prob_sums, 1e-3f,
                    dlogits);
  });
  const int64_t slots = tokens * top_k;
  const std::vector<int64_t> first_tokens = {0, tokens / 4, tokens / 2, tokens * 3 / 4, tokens};
  Tensor send_counts = empty({8, 4, 1 + experts / 8}, DType::i64);
  Tensor row_of_slot = empty({slots}, kI32), assignment_of_slot = empty({slots}, kI32);
  Tensor assignments = empty({slots, kAssignmentValues}, kI32);
  const SendPlan plan{.counts = send_counts,
                      .row_of_slot = row_of_slot,
                      .assignment_of_slot = assignment_of_slot,
                      .assignments = assignments};
  memory_row("plan_sends, 8 ranks, 4 chunks", shape,
             bytes_of(idx, weights, row_of_slot, assignment_of_slot, assignments), [&] {
               plan_sends(stream_, workspace_, idx, weights, first_tokens, experts / 8, true, plan);
             });
}

void DeviceBench::permutation() {
  if (!is_wanted("permute")) return;
  constexpr int64_t kTopK = 8, kRows = kTokens * kTopK;
  std::vector<int32_t> slots(kRows), first(kTokens + 1);
  for (int64_t i = 0; i < kRows; ++i) slots[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  std::shuffle(slots.begin(), slots.end(), std::mt19937(1));
  for (size_t t = 0; t < first.size(); ++t) first[t] = static_cast<int32_t>(t * kTopK);
  const Tensor x = random({kTokens, kHidden}, kBf16);
  const Tensor offsets = indices({kTokens + 1}, first), members = indices({kRows}, slots);
  Tensor rows = random({kRows, kHidden}, kBf16), y = empty(x.shape(), kBf16);
  const std::string shape = fmt::format("{} x {} bf16, top {}", kTokens, kHidden, kTopK);
  memory_row("permute (spread_rows)", shape, bytes_of(x, rows),
             [&] { spread_rows(stream_, x, offsets, members, 0, rows); });
  memory_row("unpermute (sum_rows)", shape, bytes_of(rows, y),
             [&] { sum_rows(stream_, rows, offsets, members, 0, y); });
}

void DeviceBench::activations() {
  if (!is_wanted("swiglu") && !is_wanted("gelu")) return;
  constexpr int64_t kRows = 131072, kFfn = 512;
  const std::string shape = fmt::format("{} x {} bf16", kRows, kFfn);
  const Tensor gated = random({kRows, 2 * kFfn}, kBf16), plain = random({kRows, kFfn}, kBf16);
  const Tensor scale = random({kRows}, kF32);
  Tensor out = random({kRows, kFfn}, kBf16), dscale = empty({kRows}, kF32);
  Tensor dgated = empty(gated.shape(), kBf16), dplain = empty(plain.shape(), kBf16);
  memory_row("swiglu forward, weighted", shape, bytes_of(gated, scale, out),
             [&] { activation_forward(stream_, Activation::swiglu, gated, scale, out); });
  memory_row("swiglu backward, weighted", shape, bytes_of(gated, out, dgated, dscale), [&] {
    activation_backward(stream_, Activation::swiglu, out, gated, scale, dgated, dscale);
  });
  memory_row("gelu forward, weighted", shape, bytes_of(plain, scale, out),
             [&] { activation_forward(stream_, Activation::gelu, plain, scale, out); });
  memory_row("gelu backward, weighted", shape, bytes_of(plain, out, dplain, dscale), [&] {
    activation_backward(stream_, Activation::gelu, out, plain, scale, dplain, dscale);
  });
}

void DeviceBench::cross_entropy() {
  if (!is_wanted("cross_entropy")) return;
  constexpr int64_t kRows = 4096, kVocab = 50304;
  std::vector<int32_t> ids(kRows);
  for (size_t t = 0; t < ids.size(); ++t) ids[t] = static_cast<int32_t>(t * 7 % kVocab);
  const Tensor logits = random({kRows, kVocab}, kF32), targets = indices({kRows}, ids);
  Tensor row_max = empty({kRows}, kF32), sum_exp = empty({kRows}, kF32);
  Tensor target_logit = empty({kRows}, kF32), losses = empty({kRows}, kF32);
  Tensor dlogits = empty(logits.shape(), kBf16);
  const std::string shape = fmt::format("{} x {}", kRows, kVocab);
  memory_row("cross_entropy forward", shape, bytes_of(logits), [&] {
    cross_entropy_forward(stream_, logits, targets, 0, row_max, sum_exp, target_logit);
    cross_entropy_losses(stream_, targets, row_max, sum_exp, target_logit, losses);
  });
  memory_row("cross_entropy backward, to bf16", shape, bytes_of(logits, dlogits), [&] {
    cross_entropy_backward(stream_, logits, targets, 0, row_max, sum_exp, 1.0f, dlogits);
  });
}

void DeviceBench::flat_buffers() {
  constexpr int64_t kElements = int64_t{1} << 28;
  const std::string shape = fmt::format("{} M", kElements >> 20);
  Tensor weights = random({kElements}, kF32), rounded = empty({kElements}, kBf16);
  Tensor exp_avg = empty({kElements}, kF32), exp_avg_sq = empty({kElements}, kF32);
  const Tensor grad = random({kElements}, kF32);
  Tensor total = empty({1}, DType::f64);
  const AdamWOptions options{.lr = 1e-3f, .weight_decay = 0.1f, .step = 10};
  memory_row(
      "adamw, with the bf16 copy", shape,
      bytes_of(grad, weights, weights, exp_avg, exp_avg, exp_avg_sq, exp_avg_sq, rounded),
      [&] { adamw_step(stream_, options, 1.0f, grad, weights, exp_avg, exp_avg_sq, rounded); });
  memory_row("gradient norm (add_sum_of_squares)", shape, bytes_of(grad),
             [&] { add_sum_of_squares(stream_, grad, 1.0, total); });
  memory_row("scale", shape, bytes_of(weights, weights), [&] { scale(stream_, 0.5f, weights); });
  memory_row("cast f32 to bf16", shape, bytes_of(weights, rounded),
             [&] { cast(stream_, weights, rounded); });
  memory_row("init_normal (Philox)", shape, bytes_of(weights), [&] {
    init_normal(stream_, {1, 2}, 1.0f, weights.shape(), Shape({0}), weights);
  });
}

void DeviceBench::decode() {
  if (!is_wanted("decode_attention")) return;
  constexpr int64_t kBatch = 8, kHeads = 32, kKvHeads = 8, kDim = 128, kLength = 32768;
  const Tensor q = random({kBatch, kHeads, kDim}, kBf16);
  const Tensor k = random({kBatch, kKvHeads, kLength, kDim}, kBf16), v = random(k.shape(), kBf16);
  const Tensor lengths = indices({kBatch}, std::vector<int32_t>(kBatch, kLength));
  Tensor out = empty({kBatch, kHeads * kDim}, kBf16);
  memory_row("decode_attention",
             fmt::format("batch {}, {}/{} heads x {}, {} keys, bf16", kBatch, kHeads, kKvHeads,
                         kDim, kLength),
             bytes_of(k, v),
             [&] { decode_attention(stream_, workspace_, q, k, v, lengths, 0.09f, out); });
}

// The experts of a decoding step: eight tokens, whose slots meet all experts.
void DeviceBench::decoded_experts(int64_t in, int64_t out) {
  if (!is_wanted("slot_products")) return;
  constexpr int64_t kSlots = kExperts;
  std::vector<int32_t> experts(kSlots);
  for (size_t i = 0; i < experts.size(); ++i) experts[i] = static_cast<int32_t>(i * 5 % kExperts);
  const Tensor x = random({kSlots, in}, kBf16), idx = indices({kSlots / 8, 8}, experts);
  const Tensor weight = random({kExperts, out, in}, kBf16, 0.02f);
  Tensor y = empty({kSlots, out}, kBf16);
  memory_row("slot_products", fmt::format("64 slots, 64 x ({} -> {}) bf16", in, out),
             bytes_of(x, weight, y), [&] { slot_products(stream_, x, idx, weight, y); });
}

void DeviceBench::dense_products() {
  if (!is_wanted("dense")) return;
  for (const DType dtype : {kBf16, kF32}) {
    const int64_t tokens = dtype == kBf16 ? kTokens : kTokens / 4, out = 4 * kHidden;
    const Tensor x = random({tokens, kHidden}, dtype), weight = random({out, kHidden}, dtype);
    Tensor y = random({tokens, out}, dtype), dx = empty(x.shape(), dtype);
    Tensor dweight = empty(weight.shape(), kF32);
    const std::string shape =
        fmt::format("{} x {} -> {} {}", tokens, kHidden, out, to_string(dtype));
    const double flops = 2.0 * static_cast<double>(tokens * kHidden * out);
    product_row("dense forward", shape, flops, dtype, [&] {
      matmul(stream_, x, Transpose::no, weight, Transpose::yes, Accumulate::no, y);
    });
    product_row("dense backward, input", shape, flops, dtype, [&] {
      matmul(stream_, y, Transpose::no, weight, Transpose::no, Accumulate::no, dx);
    });
    product_row("dense backward, weight (+= f32)", shape, flops, dtype, [&] {
      matmul(stream_, y, Transpose::yes, x, Transpose::no, Accumulate::yes, dweight);
    });
  }
}

// 16 K tokens, top-8. Groups are as uneven as a router makes them: 0.5 to 1.5 times the mean.
std::vector<int64_t> uneven_offsets(int64_t experts, int64_t rows) {
  std::mt19937 engine(1);
  std::vector<double> shares;
  double total = 0.0;
  for (int64_t e = 0; e < experts; ++e) {
    shares.push_back(0.5 + static_cast<double>(engine() % 1000) / 1000.0);
    total += shares.back();
  }
  std::vector<int64_t> offsets = {0};
  double sum = 0.0;
  for (const double share : shares) {
    sum += share;
    offsets.push_back(static_cast<int64_t>(std::llround(sum / total * static_cast<double>(rows))));
  }
  return offsets;
}

void DeviceBench::grouped_products(int64_t in, int64_t out) {
  if (!is_wanted("experts")) return;
  const std::vector<int64_t> offsets = uneven_offsets(kExperts, kExpertRows);
  const Tensor x = random({kExpertRows, in}, kBf16);
  const Tensor weight = random({kExperts, out, in}, kBf16, 0.02f);
  Tensor y = random({kExpertRows, out}, kBf16), dx = empty(x.shape(), kBf16);
  Tensor dweight = empty(weight.shape(), kF32);
  const std::string shape = fmt::format("64 x ({} -> {}), {} rows bf16", in, out, kExpertRows);
  const double flops = 2.0 * static_cast<double>(kExpertRows * in * out);
  for (const auto& [method, name] : names_of(ExpertProductMethod{})) {
    if (method == ExpertProductMethod::cutlass) continue;  // these are cuBLASLt's
    if (!has_expert_product_method(stream_.device(), method)) continue;
    set_expert_product_method(method);
    product_row(fmt::format("experts forward, {}", name), shape, flops, kBf16,
                [&] { grouped_linear_forward(stream_, x, weight, offsets, y); });
    product_row(fmt::format("experts backward, input, {}", name), shape, flops, kBf16,
                [&] { grouped_linear_backward_input(stream_, y, weight, offsets, dx); });
    product_row(
        fmt::format("experts backward, weight (+= f32), {}", name), shape, flops, kBf16,
        [&] { grouped_linear_backward_weight(stream_, y, x, offsets, Accumulate::yes, dweight); });
  }
  set_expert_product_method(std::nullopt);
}

// The product next to the activation, with the activation: in one kernel by `cutlass`.
void DeviceBench::activated_products(Activation activation, int64_t width, int64_t ffn) {
  if (!is_wanted("experts")) return;
  const std::vector<int64_t> offsets = uneven_offsets(kExperts, kExpertRows);
  const int64_t up_width = is_gated(activation) ? 2 * ffn : ffn;
  const Tensor x = random({kExpertRows, width}, kBf16), scale = random({kExpertRows}, kF32);
  const Tensor up_weight = random({kExperts, up_width, width}, kBf16, 0.02f);
  const Tensor down_weight = random({kExperts, width, ffn}, kBf16, 0.02f);
  Tensor up = empty({kExpertRows, up_width}, kBf16), act = empty({kExpertRows, ffn}, kBf16);
  Tensor dup = empty(up.shape(), kBf16), dscale = empty({kExpertRows}, kF32);
  const std::string name(to_string(activation));
  const std::string shape = fmt::format("64 x ({} -> {}), {} rows bf16", width, ffn, kExpertRows);
  const double flops = 2.0 * static_cast<double>(kExpertRows * width);
  for (const auto& [method, method_name] : names_of(ExpertProductMethod{})) {
    if (!has_expert_product_method(stream_.device(), method)) continue;
    set_expert_product_method(method);
    product_row(fmt::format("experts and {}, forward, {}", name, method_name), shape,
                flops * static_cast<double>(up_width), kBf16, [&] {
                  grouped_activation_forward(stream_, activation, x, up_weight, offsets, scale, up,
                                             act);
                });
    product_row(fmt::format("experts and {}, backward, {}", name, method_name), shape,
                flops * static_cast<double>(ffn), kBf16, [&] {
                  grouped_activation_backward(stream_, workspace_, activation, x, down_weight,
                                              offsets, up, scale, dup, dscale, act);
                });
  }
  set_expert_product_method(std::nullopt);
}

// 16 K tokens. FLOPs of the causal half: 2 products forward, 5 backward.
void DeviceBench::attention(int64_t seq_len, int64_t head_dim, int64_t kv_heads) {
  if (!is_wanted("attention forward") && !is_wanted("attention backward")) return;
  constexpr int64_t kHeads = 16;
  const int64_t batch = kTokens / seq_len;
  const Tensor q = random({batch, kHeads, seq_len, head_dim}, kBf16);
  const Tensor k = random({batch, kv_heads, seq_len, head_dim}, kBf16);
  const Tensor v = random(k.shape(), kBf16), dout = random({kTokens, kHeads * head_dim}, kBf16);
  Tensor out = empty(dout.shape(), kBf16), lse = empty({batch, kHeads, seq_len}, kF32);
  Tensor dq = empty(q.shape(), kBf16), dk = empty(k.shape(), kBf16), dv = empty(k.shape(), kBf16);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const double pairs = static_cast<double>(batch * kHeads * seq_len * (seq_len + 1) / 2);
  const double product = 2.0 * pairs * static_cast<double>(head_dim);
  const std::string shape =
      fmt::format("{} x {}/{} heads x {} x {} bf16", batch, kHeads, kv_heads, seq_len, head_dim);
  for (const auto& [method, name] : names_of(AttentionMethod{})) {
    if (method == AttentionMethod::cudnn && !cuda::has_cudnn()) continue;
    set_attention_method(method);
    product_row(fmt::format("attention forward, {}", name), shape, 2 * product, kBf16,
                [&] { attention_forward(stream_, workspace_, q, k, v, {}, scale, out, lse); });
    product_row(fmt::format("attention backward, {}", name), shape, 5 * product, kBf16, [&] {
      attention_backward(stream_, workspace_, dout, q, k, v, out, lse, {}, scale, dq, dk, dv);
    });
  }
  set_attention_method(std::nullopt);
}

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) {
  try {
    switchyard::bench::DeviceBench({argv + 1, argv + argc}).run_all();
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "device_bench: {}\n", error.what());
    return 1;
  }
}
