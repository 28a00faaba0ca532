#include "kernels/cpu/few_rows.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/cpu/simd.h"
#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

constexpr int kMostRows = 8;
// Columns of c, rows of b, that a thread takes at a time.
constexpr int64_t kTaskColumns = 64;

// Rows of b that are multiplied together: as many sums as hide the latency of an addition, and few
// enough to stay in registers.
constexpr int columns_together(int rows) { return rows == 1 ? 8 : rows <= 4 ? 4 : 2; }

// sums[i * kColumns + j] = <a row i, b row j>
//   a        [kRows, k], b [kColumns, k]
//   b_stride  elements from row to row of b
template <int kRows, int kColumns, class T>
void dot_rows(const float* a, const T* b, int64_t b_stride, int64_t k, float* sums) {
  constexpr int64_t kLine = 64 / sizeof(T);
  constexpr int kSums = kRows * kColumns, kLanes = static_cast<int>(simd::kLanes);
  constexpr int kVectors = round_up(kSums, kLanes);
  simd::Floats lanes[kVectors] = {};
  int64_t d = 0;
  for (; d + simd::kLanes <= k; d += simd::kLanes) {
    simd::Floats y[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      y[j] = simd::load(b + j * b_stride + d);
      // The rows that come next. They may lie beyond the matrix; a prefetch reads nothing.
      if (d % kLine == 0) {
        __builtin_prefetch(b + (j + kColumns) * b_stride + d, /*rw=*/0, /*locality=*/2);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const simd::Floats x = simd::load(a + i * k + d);
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) lanes[i * kColumns + j] += x * y[j];
    }
  }
  float folded[kVectors];
  for (int s = 0; s < kVectors; s += kLanes) simd::store(simd::sums_of(lanes + s), folded + s);
  for (int s = 0; s < kSums; ++s) {
    const float* x = a + s / kColumns * k;
    const T* y = b + s % kColumns * b_stride;
    sums[s] = folded[s];
    for (int64_t rest = d; rest < k; ++rest) {
      sums[s] = std::fma(x[rest], static_cast<float>(y[rest]), sums[s]);
    }
  }
}

// Columns [begin, end) of c.
//   a  op(a) as f32, [kRows, k]
template <int kRows, class T, class C>
void columns(const MatrixProduct& p, const float* a, int64_t begin, int64_t end) {
  constexpr int kTogether = columns_together(kRows);
  const T* b = static_cast<const T*>(p.b.data);
  C* c = static_cast<C*>(p.c);
  const auto put = [&](int64_t row, int64_t column, float sum) {
    C& to = c[row * p.c_stride + column];
    to = p.accumulate == Accumulate::yes ? static_cast<float>(to) + sum : sum;
  };
  float sums[kRows * kTogether];
  int64_t column = begin;
  for (; column + kTogether <= end; column += kTogether) {
    dot_rows<kRows, kTogether>(a, b + column * p.b.stride, p.b.stride, p.k, sums);
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kTogether; ++j) put(i, column + j, sums[i * kTogether + j]);
    }
  }
  for (; column < end; ++column) {
    dot_rows<kRows, 1>(a, b + column * p.b.stride, p.b.stride, p.k, sums);
    for (int i = 0; i < kRows; ++i) put(i, column, sums[i]);
  }
}

// op(a) as f32, without gaps.
template <class T>
std::vector<float> widened(const MatrixProduct& p) {
  std::vector<float> rows(static_cast<size_t>(p.m * p.k));
  for (int64_t i = 0; i < p.m; ++i) {
    const T* from = static_cast<const T*>(p.a.data) + i * p.a.stride;
    std::copy(from, from + p.k, rows.begin() + i * p.k);
  }
  return rows;
}

template <int kRows, class T, class C>
void compute_all(const MatrixProduct& p) {
  const std::vector<float> a = widened<T>(p);
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < ceil_div(p.n, kTaskColumns); ++task) {
    columns<kRows, T, C>(p, a.data(), task * kTaskColumns,
                         std::min(p.n, (task + 1) * kTaskColumns));
  }
}

template <class T, class C, int... kRows>
void compute_rows(const MatrixProduct& p, std::integer_sequence<int, kRows...>) {
  ((p.m == kRows + 1 ? compute_all<kRows + 1, T, C>(p) : void()), ...);
}

}  // namespace

bool has_few_rows(const MatrixProduct& p) {
  return p.m >= 1 && p.m <= kMostRows && p.a.transpose == Transpose::no &&
         p.b.transpose == Transpose::yes && p.k > 0;
}

void compute_few_rows(const MatrixProduct& p) {
  const std::make_integer_sequence<int, kMostRows> rows;
  dispatch_compute_dtype(p.dtype, [&]<class T>() {
    if (p.c_dtype == DType::f32) {
      compute_rows<T, float>(p, rows);
    } else {
      compute_rows<T, T>(p, rows);
    }
  });
}

}  // namespace switchyard
