#include "trainer/bench/decode_bench.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <functional>
#include <utility>

#include "kernels/attention/attention.h"
#include "kernels/basic/elementwise.h"
#include "kernels/basic/random.h"
#include "kernels/decode/gather_attention.h"
#include "kernels/decode/hamming_scores.h"
#include "kernels/decode/hash_encode.h"
#include "kernels/decode/select_top_k.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/ceiling.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/stopwatch.h"
#include "kernels/runtime/team_size.h"

namespace switchyard {
namespace {

constexpr int64_t kHeadDim = 128;
// The caches repeat this many random rows. The number is prime, so heads begin at different rows.
constexpr int64_t kRandomRows = 32749;

// Adds up the seconds of stretches of a stream's work, by either clock.
class Timer {
 public:
  Timer(Stream& stream, BenchClock clock)
      : stream_(stream), clock_(clock), stopwatch_(stream.device()) {}

  void time(const std::function<void()>& run) {
    if (clock_ == BenchClock::wall) {
      stopwatch_.start(stream_);
      run();
      stopwatch_.stop(stream_);
    } else {
      const std::clock_t begin = std::clock();
      run();
      ticks_ += std::clock() - begin;
    }
  }

  // The sum over all stretches since the last call.
  double take_seconds() {
    if (clock_ == BenchClock::wall) return stopwatch_.take_seconds();
    return static_cast<double>(std::exchange(ticks_, 0)) / CLOCKS_PER_SEC / threads_;
  }

 private:
  Stream& stream_;
  BenchClock clock_;
  Stopwatch stopwatch_;
  std::clock_t ticks_ = 0;
  int threads_ = granted_team_size();
};

// The seconds of an operation in all repetitions.
class Series {
 public:
  Series(Stream& stream, BenchClock clock) : timer_(stream, clock) {}

  void time(const std::function<void()>& run) { timer_.time(run); }
  void end_repetition(int64_t stretches = 1) {
    seconds_.push_back(timer_.take_seconds() / static_cast<double>(stretches));
  }
  // The first repetition is left out: it warms up.
  double median() const {
    std::vector<double> values(seconds_.begin() + 1, seconds_.end());
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }

 private:
  Timer timer_;
  std::vector<double> seconds_;
};

// The stream and memory that all cases share.
struct Bench {
  explicit Bench(const DecodeBenchOptions& bench_options)
      : options(bench_options),
        stream(bench_options.device),
        workspace(bench_options.device),
        memory({bench_options.read_bytes}, DType::u8, bench_options.device) {
    fill_zero(stream, memory);  // A page has memory only once it is written.
  }

  Tensor random(const Shape& shape, DType dtype, std::string_view name, float std = 1.0f) {
    Tensor values(Shape{shape.num_elements()}, DType::f32, options.device);
    init_normal(stream, {1, stream_id(name)}, std, values.shape(), Shape{0}, values);
    Tensor result(shape, dtype, options.device);
    cast(stream, values.view().reshape(shape), result);
    stream.synchronize();
    return result;
  }

  // Fills a large tensor with random rows that repeat.
  void fill(TensorView large, std::string_view name) {
    const int64_t width = large.dim(-1);
    const Tensor values = random({kRandomRows, width}, large.dtype(), name);
    const TensorView rows = large.reshape({large.num_elements() / width, width});
    for (int64_t row = 0; row < rows.dim(0); row += kRandomRows) {
      const int64_t count = std::min(kRandomRows, rows.dim(0) - row);
      copy(stream, values.view().rows(0, count), rows.rows(row, count));
    }
    stream.synchronize();
  }

  // With the projection of keys for queries, too: their values do not matter here.
  HashProjection projection(const Tensor& weight, const Tensor& thresholds) const {
    if (options.codes == QueryCodes::signs) return {weight, {}, {}};
    return {weight, weight, thresholds, options.key_planes()};
  }
  Tensor norms_of(const Shape& shape) const {
    return options.codes == QueryCodes::signs ? Tensor()
                                              : Tensor(shape, DType::f32, options.device);
  }

  Series series() { return Series(stream, options.clock); }

  // Reads the memory once. On a device, one half is copied to the other instead, which reads and
  // writes as many bytes in all.
  void read_memory() {
    const TensorView all = memory;
    if (options.device.kind == DeviceKind::cpu) {
      read_through(all);
    } else {
      const int64_t half = all.dim(0) / 2;
      copy(stream, all.rows(0, half), all.rows(half, half));
    }
  }

  const DecodeBenchOptions& options;
  Stream stream;
  Workspace workspace;
  Tensor memory;
};

// The caches of one layer, and a step's other operands and results.
struct Layer {
  Layer(Bench& bench, const DecodeBenchCase& c)
      : q(bench.random({c.batch, c.layout.heads, kHeadDim}, c.dtype, "q")),
        new_k(bench.random({c.batch, c.layout.kv_heads, 1, kHeadDim}, c.dtype, "new k")),
        weight(bench.random({c.layout.kv_heads, kHeadDim, bench.options.columns()}, DType::f32,
                            "weight", 1.0f / std::sqrt(static_cast<float>(kHeadDim)))),
        thresholds(
            bench.random({c.layout.kv_heads, bench.options.columns()}, DType::f32, "thresholds")),
        k({c.batch, c.layout.kv_heads, c.length, kHeadDim}, c.dtype, bench.options.device),
        v(k.shape(), c.dtype, bench.options.device),
        q_codes(
            {c.batch, c.layout.kv_heads * codes_per_head(bench, c), bench.options.columns() / 32},
            DType::i32, bench.options.device),
        codes({c.batch, c.layout.kv_heads, c.length, bench.options.bits / 32}, DType::i32,
              bench.options.device),
        distances({c.batch, c.layout.kv_heads, c.length}, DType::u16, bench.options.device),
        norms(bench.norms_of(distances.shape())),
        scores(bench.norms_of(distances.shape())),
        indices({c.batch, c.layout.kv_heads, c.selected}, DType::i32, bench.options.device),
        lengths({c.batch}, DType::i32, bench.options.device),
        counts({c.batch}, DType::i32, bench.options.device),
        out({c.batch, c.layout.heads * kHeadDim}, c.dtype, bench.options.device) {
    bench.fill(k, "k");
    bench.fill(v, "v");
    set_all(bench, c.length, lengths);
    set_all(bench, c.selected, counts);
    hash_encode(bench.stream, {}, k, hash(bench), 0, {}, codes, norms);
  }

  static int64_t codes_per_head(const Bench& bench, const DecodeBenchCase& c) {
    return num_query_codes(bench.options.codes, c.layout.heads / c.layout.kv_heads);
  }
  HashProjection hash(const Bench& bench) const { return bench.projection(weight, thresholds); }

  static void set_all(Bench& bench, int64_t value, TensorView to) {
    const std::vector<int32_t> values(static_cast<size_t>(to.num_elements()),
                                      static_cast<int32_t>(value));
    copy(bench.stream, view_of(std::span<const int32_t>(values)), to);
    bench.stream.synchronize();
  }

  Tensor q, new_k, weight, thresholds, k, v, q_codes, codes;
  Tensor distances, norms, scores;  // the last two are empty with signs
  Tensor indices, lengths, counts, out;
};

template <class... Tensors>
double bytes_of(const Tensors&... tensors) {
  return (static_cast<double>(tensors.view().num_bytes()) + ...);
}

// What keys are ranked by.
const Tensor& ranked(const Layer& layer) { return layer.norms ? layer.scores : layer.distances; }

void count_bytes(const Layer& layer, const DecodeBenchOptions& options, DecodeBenchCase& c) {
  const auto heads = static_cast<double>(c.batch * c.layout.kv_heads);
  const double code = static_cast<double>(options.bits) / 8.0;
  const double row = static_cast<double>(kHeadDim) * static_cast<double>(size_of(c.dtype));
  c.memory.bytes = static_cast<double>(options.read_bytes);
  c.dense.bytes = bytes_of(layer.q, layer.k, layer.v, layer.out);
  c.encode.bytes = bytes_of(layer.weight, layer.q, layer.new_k, layer.q_codes) + heads * code;
  c.score.bytes = bytes_of(layer.q_codes, layer.codes, ranked(layer)) +
                  (layer.norms ? bytes_of(layer.norms) : 0.0);
  c.select.bytes = bytes_of(ranked(layer), layer.indices);
  c.attend.bytes = bytes_of(layer.q, layer.indices, layer.out) +
                   heads * static_cast<double>(c.selected) * 2.0 * row;
  c.hata.bytes = c.encode.bytes + c.score.bytes + c.select.bytes + c.attend.bytes;
}

// A part of a hash-aware step, and the figure that takes its time.
struct Part {
  BenchFigure* figure;
  std::function<void()> run;
};

std::vector<Part> parts_of_step(Bench& bench, Layer& x, float scale, DecodeBenchCase& c) {
  const TensorView codes = x.q_codes;
  const Shape shape{c.batch, c.layout.heads, 1, kHeadDim};
  const Shape code_shape{c.batch, codes.dim(1), 1, codes.dim(2)};
  const QueryCodes kind = bench.options.codes;
  const int64_t total =
      weight_of_codes(kind, c.layout.heads / c.layout.kv_heads, bench.options.key_planes());
  return {{&c.encode,
           [&bench, &x, shape, code_shape, last = c.length - 1] {
             hash_encode(bench.stream, x.q.view().reshape(shape), x.new_k, x.hash(bench), last,
                         x.q_codes.view().reshape(code_shape), x.codes, x.norms);
           }},
          {&c.score,
           [&bench, &x, kind, total] {
             hamming_scores(bench.stream, x.q_codes, kind, x.codes, x.lengths, x.distances);
             if (!x.norms) return;
             key_norm_scores(bench.stream, x.distances, x.norms, x.lengths, total,
                             bench.options.columns(), x.scores);
           }},
          {&c.select,
           [&bench, &x] {
             select_top_k(bench.stream, bench.workspace, ranked(x), x.lengths, x.counts,
                          /*sink=*/0,
                          /*recent=*/0, x.indices);
           }},
          {&c.attend, [&bench, &x, scale] {
             gather_attention(bench.stream, bench.workspace, x.q, x.k, x.v, x.indices, x.counts, {},
                              scale, x.out);
           }}};
}

// The parts run in turn, so that other load on the machine affects all of them alike, and the host
// does not wait in between, so that a device never waits for the host.
void measure(Bench& bench, DecodeBenchCase& c) {
  Layer x(bench, c);
  count_bytes(x, bench.options, c);
  const float scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  const std::vector<Part> parts = parts_of_step(bench, x, scale, c);
  Series memory = bench.series(), dense = bench.series(), hata = bench.series();
  std::vector<Series> of_part;
  for (size_t i = 0; i < parts.size(); ++i) of_part.push_back(bench.series());
  for (int64_t i = 0; i <= bench.options.repetitions; ++i) {
    memory.time([&] { bench.read_memory(); });
    dense.time([&] {
      decode_attention(bench.stream, bench.workspace, x.q, x.k, x.v, x.lengths, scale, x.out);
    });
    memory.time([&] { bench.read_memory(); });
    hata.time([&] {
      for (size_t part = 0; part < parts.size(); ++part) of_part[part].time(parts[part].run);
    });
    memory.end_repetition(/*stretches=*/2);
    dense.end_repetition();
    hata.end_repetition();
    for (Series& series : of_part) series.end_repetition();
  }
  c.memory.seconds = memory.median();
  c.dense.seconds = dense.median();
  c.hata.seconds = hata.median();
  for (size_t i = 0; i < parts.size(); ++i) parts[i].figure->seconds = of_part[i].median();
}

DecodeBenchCase bench_case(Bench& bench, DType dtype, const HeadLayout& layout, int64_t batch,
                           int64_t length) {
  const DecodeBenchOptions& options = bench.options;
  DecodeBenchCase c{.dtype = dtype, .layout = layout, .batch = batch, .length = length};
  const auto wanted = static_cast<int64_t>(options.budget * static_cast<double>(length));
  c.selected = std::clamp<int64_t>(wanted, 1, length);
  const int64_t per_key = 2 * kHeadDim * static_cast<int64_t>(size_of(dtype)) + options.bits / 8 +
                          2 + (options.codes == QueryCodes::planes ? 8 : 0);
  c.needed_bytes = static_cast<double>(batch * layout.kv_heads * length * per_key);
  c.skipped = c.needed_bytes > options.memory_gib * 1073741824.0;
  if (!c.skipped) measure(bench, c);
  return c;
}

// A linear map of a layer.
struct Product {
  Tensor x, weight, y;
};

std::vector<Product> products_of_layer(Bench& bench, const PrefillBenchCase& c) {
  const int64_t hidden = c.layout.heads * kHeadDim, kv = c.layout.kv_heads * kHeadDim;
  // Queries, keys and values; output; gate and up; down.
  const std::pair<int64_t, int64_t> sizes[] = {{hidden, hidden + 2 * kv},
                                               {hidden, hidden},
                                               {hidden, 2 * c.layout.ffn_hidden},
                                               {c.layout.ffn_hidden, hidden}};
  std::vector<Product> products;
  for (const auto& [in, out] : sizes) {
    products.push_back({bench.random({c.tokens, in}, c.dtype, "x"),
                        Tensor({out, in}, c.dtype, bench.options.device),
                        Tensor({c.tokens, out}, c.dtype, bench.options.device)});
    const TensorView weight = products.back().weight;
    bench.fill(weight.reshape({weight.num_elements() / kHeadDim, kHeadDim}), "weight");
  }
  return products;
}

PrefillBenchCase bench_prefill(Bench& bench, DType dtype, const HeadLayout& layout) {
  const DecodeBenchOptions& options = bench.options;
  const int64_t tokens = options.prefill_tokens;
  PrefillBenchCase c{.dtype = dtype, .layout = layout, .tokens = tokens};
  std::vector<Product> layer = products_of_layer(bench, c);
  const Tensor q = bench.random({1, layout.heads, tokens, kHeadDim}, dtype, "q");
  const Tensor k = bench.random({1, layout.kv_heads, tokens, kHeadDim}, dtype, "k");
  const Tensor weight =
      bench.random({layout.kv_heads, kHeadDim, options.columns()}, DType::f32, "weight");
  const Tensor of_signs =
      bench.random({layout.kv_heads, kHeadDim, options.bits}, DType::f32, "weight of signs");
  const Tensor thresholds =
      bench.random({layout.kv_heads, options.columns()}, DType::f32, "thresholds");
  Tensor codes({1, layout.kv_heads, tokens, options.bits / 32}, DType::i32, options.device);
  Tensor norms = bench.norms_of({1, layout.kv_heads, tokens});
  Tensor out({tokens, layout.heads * kHeadDim}, dtype, options.device);
  Tensor lse({1, layout.heads, tokens}, DType::f32, options.device);
  Series encode = bench.series(), attention = bench.series(), products = bench.series();
  Series signs = bench.series();
  for (int64_t i = 0; i <= std::min<int64_t>(options.repetitions, 3); ++i) {
    products.time([&] {
      for (Product& p : layer) {
        matmul(bench.stream, p.x, Transpose::no, p.weight, Transpose::yes, Accumulate::no, p.y);
      }
    });
    attention.time([&] {
      attention_forward(bench.stream, bench.workspace, q, k, k, {}, /*scale=*/0.1f, out, lse);
    });
    encode.time([&] {
      hash_encode(bench.stream, {}, k, bench.projection(weight, thresholds), 0, {}, codes, norms);
    });
    signs.time([&] { hash_encode(bench.stream, {}, k, {of_signs, {}, {}}, 0, {}, codes, {}); });
    for (Series* series : {&encode, &attention, &products, &signs}) series->end_repetition();
  }
  c.encode_seconds = encode.median();
  c.signs_seconds = signs.median();
  c.attention_seconds = attention.median();
  c.products_seconds = products.median();
  return c;
}

void require_usable(const DecodeBenchOptions& options) {
  require(options.bits >= 32 && options.bits % 32 == 0 && options.bits <= 512,
          "--bits is {}; it must be a multiple of 32, at most 512", options.bits);
  require(options.budget > 0.0 && options.budget <= 1.0,
          "--budget is {}; it must be a share above 0, at most 1", options.budget);
  require(options.clock == BenchClock::wall || options.device.kind == DeviceKind::cpu,
          "--processor-time measures work on the CPU, not on {}; leave it out",
          to_string(options.device));
}

}  // namespace

int64_t DecodeBenchOptions::key_planes() const {
  return codes == QueryCodes::signs ? 1 : num_key_planes(bits, kHeadDim);
}

double DecodeBenchReport::code_share(DType dtype) const {
  const double length = options.codes == QueryCodes::planes ? 4.0 : 0.0;
  return (static_cast<double>(options.bits) / 8.0 + length) /
         static_cast<double>(2 * kHeadDim * static_cast<int64_t>(size_of(dtype)));
}

DecodeBenchReport bench_decode(const DecodeBenchOptions& options) {
  require_usable(options);
  DecodeBenchReport report{
      .options = options, .threads = granted_team_size(), .decode = {}, .prefill = {}};
  Bench bench(options);
  for (const DType dtype : options.dtypes) {
    for (const HeadLayout& layout : options.layouts) {
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
