#include "kernels/basic/elementwise.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/integers.h"

namespace switchyard {

void cast(Stream& stream, ConstTensorView x, TensorView y) {
  require_shape(y, x.shape(), "y");
  SWITCHYARD_BODY(stream, cast)(stream, x, y);
}

void copy(Stream& stream, ConstTensorView x, TensorView y) {
  require_shape(y, x.shape(), "y");
  require_dtype(y, x.dtype(), "y");
  require(!stream.device().is_host() || x.device() == y.device(),
          "a stream of the cpu cannot copy from {} to {}", to_string(x.device()),
          to_string(y.device()));
  SWITCHYARD_BODY(stream, copy).with_any_device()(stream, x, y);
}

void add(Stream& stream, ConstTensorView x, TensorView y) {
  require_shape(y, x.shape(), "y");
  SWITCHYARD_BODY(stream, add)(stream, x, y);
}

void fill_zero(Stream& stream, TensorView y) { SWITCHYARD_BODY(stream, fill_zero)(stream, y); }

void scale(Stream& stream, float factor, TensorView y) {
  require_dtype(y, DType::f32, "y");
  SWITCHYARD_BODY(stream, scale)(stream, factor, y);
}

void add_bias(Stream& stream, ConstTensorView bias, TensorView y) {
  require(y.rank() == 2, "y has shape {}, expected [rows, width]", y.shape());
  require_shape(bias, {y.dim(1)}, "bias");
  require_dtype(bias, DType::f32, "bias");
  SWITCHYARD_BODY(stream, add_bias)(stream, bias, y);
}

void add_bias_backward(Stream& stream, Workspace& workspace, ConstTensorView dy, TensorView dbias) {
  require(dy.rank() == 2, "dy has shape {}, expected [rows, width]", dy.shape());
  require_shape(dbias, {dy.dim(1)}, "dbias");
  require_dtype(dbias, DType::f32, "dbias");
  count_scratch(stream, workspace, no_scratch,
                [&] { cuda::add_bias_backward_scratch(workspace, dy); });
  SWITCHYARD_BODY(stream, add_bias_backward)(stream, workspace, dy, dbias);
}

void add_sum(Stream& stream, ConstTensorView x, double factor, TensorView total) {
  require_dtype(x, DType::f32, "x");
  require_shape(total, {1}, "total");
  require_dtype(total, DType::f64, "total");
  SWITCHYARD_BODY(stream, add_sum)(stream, x, factor, total);
}

void add_sum_of_squares(Stream& stream, ConstTensorView x, double factor, TensorView total) {
  require_dtype(x, DType::f32, "x");
  require_shape(total, {1}, "total");
  require_dtype(total, DType::f64, "total");
  SWITCHYARD_BODY(stream, add_sum_of_squares)(stream, x, factor, total);
}

void add_column_sums(Stream& stream, ConstTensorView x, TensorView totals) {
  require(x.rank() == 2, "x has shape {}, expected [rows, width]", x.shape());
  require_dtype(x, DType::f32, "x");
  require_shape(totals, {x.dim(1)}, "totals");
  require_dtype(totals, DType::f64, "totals");
  SWITCHYARD_BODY(stream, add_column_sums)(stream, x, totals);
}

namespace cpu {
namespace {

// Elements of one task. The sums of the chunks are added in order, so that the result does not
// depend on the number of threads.
constexpr int64_t kChunk = int64_t{1} << 15;

// Sums of a chunk that run side by side, the same number on all processors: of one sum GCC 12 would
// add the elements one after the other.
constexpr int64_t kSums = 16;

// The sum of term(value) over the values.
template <class Term>
double sum_of_chunk(std::span<const float> values, const Term& term) {
  double sums[kSums] = {};
  const int64_t n = std::ssize(values), whole = n / kSums * kSums;
  for (int64_t i = 0; i < whole; i += kSums) {
#pragma omp simd
    for (int64_t l = 0; l < kSums; ++l) sums[l] += term(double{values.data()[i + l]});
  }
  double total = 0.0;
  for (const double sum : sums) total += sum;
  for (int64_t i = whole; i < n; ++i) total += term(double{values.data()[i]});
  return total;
}

template <class Term>
double chunked_sum(std::span<const float> values, const Term& term) {
  const int64_t n = std::ssize(values), chunks = ceil_div(n, kChunk);
  std::vector<double> partial(static_cast<size_t>(chunks));
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < chunks; ++c) {
    const auto begin = static_cast<size_t>(c * kChunk);
    const auto count = static_cast<size_t>(std::min(kChunk, n - c * kChunk));
    partial[static_cast<size_t>(c)] = sum_of_chunk(values.subspan(begin, count), term);
  }
  double total = 0.0;
  for (const double p : partial) total += p;
  return total;
}

std::span<const float> values_of(ConstTensorView x) {
  return {x.data<float>(), static_cast<size_t>(x.num_elements())};
}

// Calls body(begin, end) for chunks of [0, n), in parallel.
template <class Body>
void for_chunks(int64_t n, const Body& body) {
#pragma omp parallel for schedule(static) if (n > kChunk)
  for (int64_t begin = 0; begin < n; begin += kChunk) body(begin, std::min(n, begin + kChunk));
}

template <class From, class To>
void convert(const From* x, To* y, int64_t n) {
  for_chunks(n, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) y[i] = To(static_cast<float>(x[i]));
  });
}

}  // namespace

void cast(Stream& stream, ConstTensorView x, TensorView y) {
  if (x.dtype() == y.dtype()) return cpu::copy(stream, x, y);
  dispatch_compute_dtype(x.dtype(), [&]<class From>() {
    dispatch_compute_dtype(
        y.dtype(), [&]<class To>() { convert(x.data<From>(), y.data<To>(), x.num_elements()); });
  });
}

void copy(Stream&, ConstTensorView x, TensorView y) {
  const auto* source = static_cast<const char*>(x.raw());
  auto* target = static_cast<char*>(y.raw());
  for_chunks(static_cast<int64_t>(x.num_bytes()), [&](int64_t begin, int64_t end) {
    std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin));
  });
}

void add(Stream&, ConstTensorView x, TensorView y) {
  dispatch_compute_dtype(x.dtype(), [&]<class From>() {
    dispatch_compute_dtype(y.dtype(), [&]<class To>() {
      const From* from = x.data<From>();
      To* to = y.data<To>();
      for_chunks(x.num_elements(), [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
          to[i] = To(static_cast<float>(to[i]) + static_cast<float>(from[i]));
        }
      });
    });
  });
}

void fill_zero(Stream&, TensorView y) {
  auto* target = static_cast<char*>(y.raw());
  for_chunks(static_cast<int64_t>(y.num_bytes()), [&](int64_t begin, int64_t end) {
    std::memset(target + begin, 0, static_cast<size_t>(end - begin));
  });
}

void scale(Stream&, float factor, TensorView y) {
  float* values = y.data<float>();
  for_chunks(y.num_elements(), [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) values[i] *= factor;
  });
}

void add_bias(Stream&, ConstTensorView bias, TensorView y) {
  dispatch_compute_dtype(y.dtype(), [&]<class T>() {
    const int64_t rows = y.dim(0), width = y.dim(1);
    const float* b = bias.data<float>();
    T* values = y.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        values[r * width + i] = static_cast<float>(values[r * width + i]) + b[i];
      }
    }
  });
}

void add_bias_backward(Stream&, Workspace&, ConstTensorView dy, TensorView dbias) {
  dispatch_compute_dtype(dy.dtype(), [&]<class T>() {
    const int64_t rows = dy.dim(0), width = dy.dim(1);
    const T* d = dy.data<T>();
    float* sums = dbias.data<float>();
    constexpr int64_t kColumns = 64;  // columns of a task; each column is summed in row order
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < width; begin += kColumns) {
      const int64_t end = std::min(width, begin + kColumns);
      for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) sums[i] += static_cast<float>(d[r * width + i]);
      }
    }
  });
}

void add_sum(Stream&, ConstTensorView x, double factor, TensorView total) {
  total.data<double>()[0] += factor * chunked_sum(values_of(x), [](double value) { return value; });
}

void add_sum_of_squares(Stream&, ConstTensorView x, double factor, TensorView total) {
  total.data<double>()[0] +=
      factor * chunked_sum(values_of(x), [](double value) { return value * value; });
}

void add_column_sums(Stream&, ConstTensorView x, TensorView totals) {
  const int64_t rows = x.dim(0), width = x.dim(1);
  double* sums = totals.data<double>();
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x.data<float>() + r * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) sums[i] += static_cast<double>(row[i]);
  }
}

}  // namespace cpu
}  // namespace switchyard
