#include <algorithm>
#include <numeric>

#include "kernels/attention/attention.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/ceiling.h"
#include "trainer/bench/calibration.h"
#include "trainer/bench/work_clock.h"

namespace switchyard {
namespace {

constexpr int64_t kExperts = 8;

// The rows of each expert differ from the mean by up to a half.
std::vector<int64_t> ragged_offsets(int64_t mean) {
  std::vector<int64_t> offsets = {0};
  for (int64_t e = 0; e < kExperts; ++e) {
    offsets.push_back(offsets.back() + mean / 2 + mean * e / (kExperts - 1));
  }
  offsets.back() = mean * kExperts;
  return offsets;
}

// Runs one product, [m, k] [k, n].
void run_single(Stream& stream, ProductKind kind, DType dtype, int64_t m, int64_t n, int64_t k,
                WorkClock& clock, double& seconds) {
  const Device device = stream.device();
  const bool gradient = kind == ProductKind::weight_gradient;
  const bool forward = kind == ProductKind::forward;
  const Tensor a(gradient ? Shape{k, m} : Shape{m, k}, dtype, device);
  const Tensor b(forward ? Shape{n, k} : Shape{k, n}, dtype, device);
  Tensor c({m, n}, gradient ? DType::f32 : dtype, device);
  seconds = clock.seconds_of([&] {
    matmul(stream, a, gradient ? Transpose::yes : Transpose::no, b,
           forward ? Transpose::yes : Transpose::no, gradient ? Accumulate::yes : Accumulate::no,
           c);
  });
}

// Runs the products of kExperts experts; the ragged size is m, or k of a weight gradient. The time
// is one expert's.
void run_grouped(Stream& stream, ProductKind kind, DType dtype, int64_t m, int64_t n, int64_t k,
                 WorkClock& clock, double& seconds) {
  const Device device = stream.device();
  const bool gradient = kind == ProductKind::weight_gradient;
  const std::vector<int64_t> offsets = ragged_offsets(gradient ? k : m);
  const int64_t rows = offsets.back();
  if (gradient) {
    const Tensor dy({rows, m}, dtype, device), x({rows, n}, dtype, device);
    Tensor dweight({kExperts, m, n}, DType::f32, device);
    seconds = clock.seconds_of(
        [&] { grouped_linear_backward_weight(stream, dy, x, offsets, Accumulate::yes, dweight); });
  } else {
    const bool forward = kind == ProductKind::forward;
    const Tensor in({rows, k}, dtype, device);
    const Tensor weight(forward ? Shape{kExperts, n, k} : Shape{kExperts, k, n}, dtype, device);
    Tensor out({rows, n}, dtype, device);
    const auto op = forward ? grouped_linear_forward : grouped_linear_backward_input;
    seconds = clock.seconds_of([&] { op(stream, in, weight, offsets, out); });
  }
  seconds /= kExperts;
}

using RunProduct = decltype(run_single);

TimeGrid measure_grid(Stream& stream, ProductKind kind, DType dtype, WorkClock& clock,
                      TimeGrid sizes, RunProduct& run) {
  for (const double m : sizes.m) {
    for (const double n : sizes.n) {
      for (const double k : sizes.k) {
        run(stream, kind, dtype, static_cast<int64_t>(m), static_cast<int64_t>(n),
            static_cast<int64_t>(k), clock, sizes.seconds.emplace_back());
      }
    }
  }
  return sizes;
}

TimeGrid measure_attention(Stream& stream, DType dtype, bool backward, WorkClock& clock) {
  constexpr int64_t kHeads = 4;
  TimeGrid grid{.m = {32, 128, 512, 2048}, .n = {16, 64, 128}, .k = {1}, .seconds = {}};
  const Device device = stream.device();
  Workspace workspace(device);
  for (const double m : grid.m) {
    for (const double n : grid.n) {
      const auto seq_len = static_cast<int64_t>(m), head_dim = static_cast<int64_t>(n);
      const Shape heads{seq_len, kHeads * head_dim};
      const auto tensor = [&] { return Tensor({1, kHeads, seq_len, head_dim}, dtype, device); };
      Tensor q = tensor(), k = tensor(), v = tensor(), dq = tensor(), dk = tensor(), dv = tensor();
      Tensor out(heads, dtype, device), dout(heads, dtype, device);
      Tensor lse({1, kHeads, seq_len}, DType::f32, device);
      attention_forward(stream, workspace, q, k, v, {}, 1.0f, out, lse);
      const double seconds = clock.seconds_of([&] {
        const WorkspaceScope scope(workspace);
        if (backward) {
          attention_backward(stream, workspace, dout, q, k, v, out, lse, {}, 1.0f, dq, dk, dv);
        } else {
          attention_forward(stream, workspace, q, k, v, {}, 1.0f, out, lse);
        }
      });
      grid.seconds.push_back(seconds / kHeads);
    }
  }
  return grid;
}

ProductTimes measure(Stream& stream, DType dtype, WorkClock& clock) {
  const std::vector<double> sizes = {32, 128, 512, 2048}, rows = {4, 16, 64, 256, 1024};
  const std::vector<double> widths = {32, 128, 512, 1024};
  ProductTimes times;
  times.peak = measure_product_ceiling(stream, dtype);
  for (int i = 0; i < kNumProductKinds; ++i) {
    const auto kind = static_cast<ProductKind>(i);
    const auto index = static_cast<size_t>(i);
    times.single[index] =
        measure_grid(stream, kind, dtype, clock,
                     {.m = sizes, .n = sizes, .k = sizes, .seconds = {}}, run_single);
    const TimeGrid grouped = kind == ProductKind::weight_gradient
                                 ? TimeGrid{.m = widths, .n = widths, .k = rows, .seconds = {}}
                                 : TimeGrid{.m = rows, .n = widths, .k = widths, .seconds = {}};
    times.grouped[index] = measure_grid(stream, kind, dtype, clock, grouped, run_grouped);
  }
  for (const bool backward : {false, true}) {
    times.attention[backward ? 1 : 0] = measure_attention(stream, dtype, backward, clock);
  }
  return times;
}

}  // namespace

std::map<DType, ProductTimes> calibrate_products(Stream& stream, int threads) {
  WorkClock clock(stream, threads);
  return {{DType::f32, measure(stream, DType::f32, clock)},
          {DType::bf16, measure(stream, DType::bf16, clock)}};
}

}  // namespace switchyard
