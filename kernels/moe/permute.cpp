#include "kernels/moe/permute.h"

#include <algorithm>
#include <cstring>

#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void gather_rows(Stream& stream, ConstTensorView x, ConstTensorView source_row, TensorView y) {
  require(x.rank() == 2, "x has shape {}, expected [rows, width]", to_string(x.shape()));
  require_dtype(source_row, DType::i32, "source_row");
  require_shape(y, {source_row.num_elements(), x.dim(1)}, "y");
  require_dtype(y, x.dtype(), "y");
  SWITCHYARD_BODY(stream, gather_rows)(stream, x, source_row, y);
}

void sum_rows(Stream& stream, ConstTensorView x, ConstTensorView offsets, ConstTensorView members,
              TensorView y) {
  require(x.rank() == 2 && y.rank() == 2, "x has shape {}, expected [rows, width]",
          to_string(x.shape()));
  require_dtype(offsets, DType::i32, "offsets");
  require_dtype(members, DType::i32, "members");
  require_shape(offsets, {y.dim(0) + 1}, "offsets");
  require_shape(y, {y.dim(0), x.dim(1)}, "y");
  require_dtype(y, x.dtype(), "y");
  SWITCHYARD_BODY(stream, sum_rows)(stream, x, offsets, members, y);
}

namespace {

void check_values(ConstTensorView x, ConstTensorView index, ConstTensorView y) {
  require_dtype(index, DType::i32, "index");
  require(x.dtype() == y.dtype() && (x.dtype() == DType::f32 || x.dtype() == DType::i32),
          "values are f32 or i32, not {} and {}", to_string(x.dtype()), to_string(y.dtype()));
}

}  // namespace

void gather_values(Stream& stream, ConstTensorView x, ConstTensorView index, TensorView y) {
  check_values(x, index, y);
  require(y.num_elements() == index.num_elements(), "{} values do not fit {} indices",
          y.num_elements(), index.num_elements());
  SWITCHYARD_BODY(stream, gather_values)(stream, x, index, y);
}

void scatter_values(Stream& stream, ConstTensorView x, ConstTensorView index, TensorView y) {
  check_values(x, index, y);
  require(x.num_elements() == index.num_elements(), "{} values do not fit {} indices",
          x.num_elements(), index.num_elements());
  SWITCHYARD_BODY(stream, scatter_values)(stream, x, index, y);
}

namespace cpu {
namespace {

constexpr int64_t kColumns = 1024;  // of one task, which keeps their sums on its stack

// Columns [0, columns) of the sum of some rows of `stride` elements, added in order in f32.
template <class T>
void sum_members(const T* x, const int32_t* members, int32_t count, int64_t stride, int64_t columns,
                 T* y) {
  const auto row = [&](int32_t j) { return x + members[j] * stride; };
  float sums[kColumns] = {};
  int32_t j = 0;
  for (; j + 4 <= count; j += 4) {  // four rows per pass reduce the traffic of `sums` to a quarter
    const T *a = row(j), *b = row(j + 1), *c = row(j + 2), *d = row(j + 3);
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) {
      sums[i] = sums[i] + static_cast<float>(a[i]) + static_cast<float>(b[i]) +
                static_cast<float>(c[i]) + static_cast<float>(d[i]);
    }
  }
  for (; j < count; ++j) {
    const T* a = row(j);
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) sums[i] += static_cast<float>(a[i]);
  }
#pragma omp simd
  for (int64_t i = 0; i < columns; ++i) y[i] = sums[i];
}

}  // namespace

void gather_rows(Stream&, ConstTensorView x, ConstTensorView source_row, TensorView y) {
  const size_t row_bytes = static_cast<size_t>(x.dim(1)) * size_of(x.dtype());
  const auto* from = static_cast<const char*>(x.raw());
  auto* to = static_cast<char*>(y.raw());
  const int32_t* source = source_row.data<int32_t>();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < y.dim(0); ++i) {
    std::memcpy(to + static_cast<size_t>(i) * row_bytes,
                from + static_cast<size_t>(source[i]) * row_bytes, row_bytes);
  }
}

void sum_rows(Stream&, ConstTensorView x, ConstTensorView offsets, ConstTensorView members,
              TensorView y) {
  const int64_t rows = y.dim(0), width = y.dim(1);
  const int32_t *offset = offsets.data<int32_t>(), *member = members.data<int32_t>();
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      T* out = y.data<T>() + i * width;
      for (int64_t begin = 0; begin < width; begin += kColumns) {
        sum_members(x.data<T>() + begin, member + offset[i], offset[i + 1] - offset[i], width,
                    std::min(kColumns, width - begin), out + begin);
      }
    }
  });
}

// Both functions copy 32-bit values of any type.
void gather_values(Stream&, ConstTensorView x, ConstTensorView index, TensorView y) {
  const auto* from = static_cast<const uint32_t*>(x.raw());
  const int32_t* at = index.data<int32_t>();
  auto* to = static_cast<uint32_t*>(y.raw());
  for (int64_t i = 0; i < y.num_elements(); ++i) to[i] = at[i] >= 0 ? from[at[i]] : 0;
}

void scatter_values(Stream&, ConstTensorView x, ConstTensorView index, TensorView y) {
  const auto* from = static_cast<const uint32_t*>(x.raw());
  const int32_t* at = index.data<int32_t>();
  auto* to = static_cast<uint32_t*>(y.raw());
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    if (at[i] >= 0) to[at[i]] = from[i];
  }
}

}  // namespace cpu
}  // namespace switchyard
