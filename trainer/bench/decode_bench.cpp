#include "trainer/bench/decode_bench.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <functional>
#include <utility>

#include "kernels/attention.h"
#include "kernels/ceiling.h"
#include "kernels/check.h"
#include "kernels/elementwise.h"
#include "kernels/gather_attention.h"
#include "kernels/hamming_scores.h"
#include "kernels/hash_encode.h"
#include "kernels/matmul.h"
#include "kernels/random.h"
#include "kernels/select_top_k.h"

namespace switchyard {
namespace {

constexpr int64_t kHeadDim = 128;
// More than processors cache, so that reading it leaves nothing of what was there before.
constexpr int64_t kMemoryBytes = int64_t{512} << 20;
// Rows of random values that the caches repeat. A prime number: heads begin at different ones.
constexpr int64_t kRandomRows = 32749;

// Llama-2-7B and Llama-3.1-8B, those of HATA's own measurements.
const HeadLayout kLayouts[] = {{"MHA", 32, 32, 11008}, {"GQA", 32, 8, 14336}};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Stopwatch {
 public:
  Stopwatch(Stream& stream, BenchClock clock) : stream_(stream), clock_(clock) {}

  double seconds_of(const std::function<void()>& run) {
    stream_.synchronize();
    const double begin = now();
    run();
    stream_.synchronize();
    return now() - begin;
  }

 private:
  double now() const {
    if (clock_ == BenchClock::processor) {
      return static_cast<double>(std::clock()) / CLOCKS_PER_SEC / omp_get_max_threads();
    }
    const std::chrono::duration<double> now = std::chrono::steady_clock::now().time_since_epoch();
    return now.count();
  }

  Stream& stream_;
  BenchClock clock_;
};

// What all cases share.
struct Bench {
  explicit Bench(const DecodeBenchOptions& bench_options)
      : options(bench_options),
        stream(bench_options.device),
        workspace(bench_options.device),
        stopwatch(stream, bench_options.clock),
        memory({kMemoryBytes}, DType::u8, bench_options.device) {
    fill_zero(stream, memory);  // pages that nobody has written lie nowhere
  }

  Tensor random(const Shape& shape, DType dtype, std::string_view name, float std = 1.0f) {
    Tensor values(Shape{shape.num_elements()}, DType::f32, options.device);
    init_normal(stream, {1, stream_id(name)}, std, values.shape(), Shape{0}, values);
    Tensor result(shape, dtype, options.device);
    cast(stream, values.view().reshape(shape), result);
    stream.synchronize();
    return result;
  }

  // Seconds to read the memory once. On a device a copy stands in for it, of half of it to the
  // other: as many bytes in all.
  double read_memory() {
    const TensorView all = memory;
    return stopwatch.seconds_of([&] {
      if (options.device.kind == DeviceKind::cpu) {
        read_through(all);
      } else {
        copy(stream, all.rows(0, kMemoryBytes / 2), all.rows(kMemoryBytes / 2, kMemoryBytes / 2));
      }
    });
  }

  const DecodeBenchOptions& options;
  Stream stream;
  Workspace workspace;
  Stopwatch stopwatch;
  Tensor memory;
};

// The caches of one layer, and all that a step needs.
struct Layer {
  Layer(Bench& bench, const DecodeBenchCase& c)
      : q(bench.random({c.batch, c.layout.heads, kHeadDim}, c.dtype, "q")),
        new_k(bench.random({c.batch, c.layout.kv_heads, 1, kHeadDim}, c.dtype, "new k")),
        weight(bench.random({c.layout.kv_heads, kHeadDim, bench.options.bits}, DType::f32, "weight",
                            1.0f / std::sqrt(static_cast<float>(kHeadDim)))),
        k({c.batch, c.layout.kv_heads, c.length, kHeadDim}, c.dtype, bench.options.device),
        v(k.shape(), c.dtype, bench.options.device),
        q_codes({c.batch, c.layout.heads, bench.options.bits / 32}, DType::i32,
                bench.options.device),
        codes({c.batch, c.layout.kv_heads, c.length, bench.options.bits / 32}, DType::i32,
              bench.options.device),
        distances({c.batch, c.layout.kv_heads, c.length}, DType::u16, bench.options.device),
        indices({c.batch, c.layout.kv_heads, c.selected}, DType::i32, bench.options.device),
        lengths({c.batch}, DType::i32, bench.options.device),
        counts({c.batch}, DType::i32, bench.options.device),
        out({c.batch, c.layout.heads * kHeadDim}, c.dtype, bench.options.device) {
    fill(bench, k, "k");
    fill(bench, v, "v");
    set_all(bench, c.length, lengths);
    set_all(bench, c.selected, counts);
    hash_encode(bench.stream, {}, k, weight, 0, {}, codes, {});
  }

  static void fill(Bench& bench, TensorView cache, std::string_view name) {
    const Tensor values = bench.random({kRandomRows, kHeadDim}, cache.dtype(), name);
    const TensorView rows = cache.reshape({cache.num_elements() / kHeadDim, kHeadDim});
    for (int64_t row = 0; row < rows.dim(0); row += kRandomRows) {
      const int64_t count = std::min(kRandomRows, rows.dim(0) - row);
      copy(bench.stream, values.view().rows(0, count), rows.rows(row, count));
    }
    bench.stream.synchronize();
  }

  static void set_all(Bench& bench, int64_t value, TensorView to) {
    const std::vector<int32_t> values(static_cast<size_t>(to.num_elements()),
                                      static_cast<int32_t>(value));
    copy(bench.stream, view_of(std::span<const int32_t>(values)), to);
    bench.stream.synchronize();
  }

  Tensor q, new_k, weight, k, v, q_codes, codes, distances, indices, lengths, counts, out;
};

template <class... Tensors>
double bytes_of(const Tensors&... tensors) {
  return (static_cast<double>(tensors.view().num_bytes()) + ...);
}

void count_bytes(const Layer& layer, int64_t bits, DecodeBenchCase& c) {
  const auto heads = static_cast<double>(c.batch * c.layout.kv_heads);
  const double code = static_cast<double>(bits) / 8.0;
  const double row = static_cast<double>(kHeadDim) * static_cast<double>(size_of(c.dtype));
  c.memory.bytes = static_cast<double>(kMemoryBytes);
  c.dense.bytes = bytes_of(layer.q, layer.k, layer.v, layer.out);
  c.encode.bytes = bytes_of(layer.weight, layer.q, layer.new_k, layer.q_codes) + heads * code;
  c.score.bytes = bytes_of(layer.q_codes, layer.codes, layer.distances);
  c.select.bytes = bytes_of(layer.distances, layer.indices);
  c.attend.bytes = bytes_of(layer.q, layer.indices, layer.out) +
                   heads * static_cast<double>(c.selected) * 2.0 * row;
  c.hata.bytes = c.encode.bytes + c.score.bytes + c.select.bytes + c.attend.bytes;
}

void measure(Bench& bench, DecodeBenchCase& c) {
  Layer x(bench, c);
  count_bytes(x, bench.options.bits, c);
  const float scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  const ConstTensorView q = x.q, q_rows = x.q.view().reshape({c.batch, c.layout.heads, 1, kHeadDim});
  const TensorView code_rows =
      x.q_codes.view().reshape({c.batch, c.layout.heads, 1, x.q_codes.view().dim(2)});
  Stream& stream = bench.stream;
  const std::vector<std::pair<BenchFigure*, std::function<void()>>> parts = {
      {&c.encode,
       [&] {
         hash_encode(stream, q_rows, x.new_k, x.weight, c.length - 1, code_rows, x.codes, {});
       }},
      {&c.score, [&] { hamming_scores(stream, x.q_codes, x.codes, x.lengths, x.distances); }},
      {&c.select,
       [&] {
         select_top_k(stream, bench.workspace, x.distances, x.lengths, x.counts, 0, 0, x.indices);
       }},
      {&c.attend, [&] {
         gather_attention(stream, bench.workspace, q, x.k, x.v, x.indices, x.counts, scale, x.out);
       }}};
  std::vector<double> memory, dense, hata;
  std::vector<std::vector<double>> of_part(parts.size());
  for (int64_t i = 0; i <= bench.options.repetitions; ++i) {
    memory.push_back(bench.read_memory());
    dense.push_back(bench.stopwatch.seconds_of([&] {
      decode_attention(stream, bench.workspace, q, x.k, x.v, x.lengths, scale, x.out);
    }));
    memory.push_back(bench.read_memory());
    hata.push_back(0.0);
    for (size_t part = 0; part < parts.size(); ++part) {
      of_part[part].push_back(bench.stopwatch.seconds_of(parts[part].second));
      hata.back() += of_part[part].back();
    }
    if (i > 0) continue;  // the first one warms up
    for (auto* seconds : {&memory, &dense, &hata}) seconds->clear();
    for (auto& seconds : of_part) seconds.clear();
  }
  c.memory.seconds = median(memory);
  c.dense.seconds = median(dense);
  c.hata.seconds = median(hata);
  for (size_t part = 0; part < parts.size(); ++part) {
    parts[part].first->seconds = median(of_part[part]);
  }
}

DecodeBenchCase bench_case(Bench& bench, DType dtype, const HeadLayout& layout, int64_t batch,
                           int64_t length) {
  const DecodeBenchOptions& options = bench.options;
  DecodeBenchCase c{.dtype = dtype, .layout = layout, .batch = batch, .length = length};
  const auto wanted = static_cast<int64_t>(options.budget * static_cast<double>(length));
  c.selected = std::clamp<int64_t>(wanted, 1, length);
  const int64_t per_key = 2 * kHeadDim * static_cast<int64_t>(size_of(dtype)) + options.bits / 8 + 2;
  c.needed_bytes = static_cast<double>(batch * layout.kv_heads * length * per_key);
  c.skipped = c.needed_bytes > options.memory_gib * 1073741824.0;
  if (!c.skipped) measure(bench, c);
  return c;
}

double seconds_of_products(Bench& bench, const PrefillBenchCase& c) {
  const int64_t hidden = c.layout.heads * kHeadDim, kv = c.layout.kv_heads * kHeadDim;
  // Queries, keys and values; output; gate and up; down.
  const std::pair<int64_t, int64_t> products[] = {{hidden, hidden + 2 * kv},
                                                  {hidden, hidden},
                                                  {hidden, 2 * c.layout.ffn_hidden},
                                                  {c.layout.ffn_hidden, hidden}};
  double seconds = 0.0;
  for (const auto& [in, out] : products) {
    const Tensor x = bench.random({c.tokens, in}, c.dtype, "x");
    const Tensor weight({out, in}, c.dtype, bench.options.device);
    Tensor y({c.tokens, out}, c.dtype, bench.options.device);
    seconds += bench.stopwatch.seconds_of([&] {
      matmul(bench.stream, x, Transpose::no, weight, Transpose::yes, Accumulate::no, y);
    });
  }
  return seconds;
}

PrefillBenchCase bench_prefill(Bench& bench, DType dtype, const HeadLayout& layout) {
  const DecodeBenchOptions& options = bench.options;
  const int64_t tokens = options.prefill_tokens;
  PrefillBenchCase c{.dtype = dtype, .layout = layout, .tokens = tokens};
  const Device device = options.device;
  const Tensor q = bench.random({1, layout.heads, tokens, kHeadDim}, dtype, "q");
  const Tensor k = bench.random({1, layout.kv_heads, tokens, kHeadDim}, dtype, "k");
  const Tensor weight =
      bench.random({layout.kv_heads, kHeadDim, options.bits}, DType::f32, "weight");
  Tensor codes({1, layout.kv_heads, tokens, options.bits / 32}, DType::i32, device);
  Tensor out({tokens, layout.heads * kHeadDim}, dtype, device);
  Tensor lse({1, layout.heads, tokens}, DType::f32, device);
  std::vector<double> encode, attention, products;
  for (int64_t i = 0; i <= std::min<int64_t>(options.repetitions, 3); ++i) {
    products.push_back(seconds_of_products(bench, c));
    attention.push_back(bench.stopwatch.seconds_of([&] {
      attention_forward(bench.stream, bench.workspace, q, k, k, {}, 0.1f, out, lse);
    }));
    encode.push_back(bench.stopwatch.seconds_of(
        [&] { hash_encode(bench.stream, {}, k, weight, 0, {}, codes, {}); }));
    if (i > 0) continue;  // the first one warms up
    for (auto* seconds : {&encode, &attention, &products}) seconds->clear();
  }
  c.encode_seconds = median(encode);
  c.attention_seconds = median(attention);
  c.products_seconds = median(products);
  return c;
}

void require_usable(const DecodeBenchOptions& options) {
  require(options.bits >= 32 && options.bits % 32 == 0 && options.bits <= 512,
          "{} bits: must be a multiple of 32, at most 512", options.bits);
  require(options.budget > 0.0 && options.budget <= 1.0, "a budget of {} is no share",
          options.budget);
  require(options.clock == BenchClock::wall || options.device.kind == DeviceKind::cpu,
          "the processor's time says nothing of work on {}", to_string(options.device));
}

}  // namespace

double DecodeBenchReport::code_share(DType dtype) const {
  return static_cast<double>(options.bits) / 8.0 /
         static_cast<double>(2 * kHeadDim * static_cast<int64_t>(size_of(dtype)));
}

DecodeBenchReport bench_decode(const DecodeBenchOptions& options) {
  require_usable(options);
  DecodeBenchReport report{
      .options = options, .threads = omp_get_max_threads(), .decode = {}, .prefill = {}};
  Bench bench(options);
  for (const DType dtype : options.dtypes) {
    for (const HeadLayout& layout : kLayouts) {
      for (const int64_t batch : options.batches) {
        for (const int64_t length : options.lengths) {
          report.decode.push_back(bench_case(bench, dtype, layout, batch, length));
        }
      }
      report.prefill.push_back(bench_prefill(bench, dtype, layout));
    }
  }
  return report;
}

}  // namespace switchyard
