#include "kernels/moe/permute.h"

#include <algorithm>
#include <cstring>
#include <ranges>
#include <span>

#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void gather_rows(Stream& stream, ConstTensorView x, ConstTensorView source_row, TensorView y) {
  require(x.rank() == 2, "x has shape {}, expected [rows, width]", x.shape());
  require_dtype(source_row, DType::i32, "source_row");
  require_shape(y, {source_row.num_elements(), x.dim(1)}, "y");
  require_dtype(y, x.dtype(), "y");
  SWITCHYARD_BODY(stream, gather_rows)(stream, x, source_row, y);
}

namespace {

// Of `rows` rows, each with its members.
void check_members(ConstTensorView offsets, ConstTensorView members, int64_t rows) {
  require_dtype(members, DType::i32, "members");
  if (offsets) {
    require_dtype(offsets, DType::i32, "offsets");
    require_shape(offsets, {rows + 1}, "offsets");
  } else {
    require(rows == 0 ? members.num_elements() == 0 : members.num_elements() % rows == 0,
            "{} members do not give {} rows the same number", members.num_elements(), rows);
  }
}

}  // namespace

void spread_rows(Stream& stream, ConstTensorView x, ConstTensorView offsets,
                 ConstTensorView members, int64_t first_row, TensorView y) {
  require(x.rank() == 2 && y.rank() == 2, "x has shape {}, expected [rows, width]", x.shape());
  check_members(offsets, members, x.dim(0));
  require_shape(y, {y.dim(0), x.dim(1)}, "y");
  require_dtype(y, x.dtype(), "y");
  SWITCHYARD_BODY(stream, spread_rows)(stream, x, offsets, members, first_row, y);
}

void sum_rows(Stream& stream, ConstTensorView x, ConstTensorView offsets, ConstTensorView members,
              int64_t first_row, TensorView y) {
  require(x.rank() == 2 && y.rank() == 2, "x has shape {}, expected [rows, width]", x.shape());
  if (offsets || members) {
    check_members(offsets, members, y.dim(0));
  } else {
    require(y.dim(0) == 0 || x.dim(0) % y.dim(0) == 0,
            "{} rows do not give {} rows the same number", x.dim(0), y.dim(0));
  }
  require_shape(y, {y.dim(0), x.dim(1)}, "y");
  require_dtype(y, x.dtype(), "y");
  SWITCHYARD_BODY(stream, sum_rows)(stream, x, offsets, members, first_row, y);
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

// The sum of some rows of `width` elements, added in order in f32; a member of -1 stands for none.
template <class T, class Members>
void sum_members(const T* x, const Members& members, int64_t width, T* y) {
  for (int64_t begin = 0; begin < width; begin += kColumns) {
    const int64_t columns = std::min(kColumns, width - begin);
    float sums[kColumns] = {};
    // Four rows per pass reduce the traffic of `sums` to a quarter.
    const T* rows[4];
    int count = 0;
    for (const int64_t member : members) {
      if (member < 0) continue;
      rows[count++] = x + member * width + begin;
      if (count < 4) continue;
      const T *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) {
        sums[i] = sums[i] + static_cast<float>(a[i]) + static_cast<float>(b[i]) +
                  static_cast<float>(c[i]) + static_cast<float>(d[i]);
      }
      count = 0;
    }
    for (int r = 0; r < count; ++r) {
      const T* a = rows[r];
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) sums[i] += static_cast<float>(a[i]);
    }
    T* out = y + begin;
#pragma omp simd
    for (int64_t i = 0; i < columns; ++i) out[i] = sums[i];
  }
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

void spread_rows(Stream&, ConstTensorView x, ConstTensorView offsets, ConstTensorView members,
                 int64_t first_row, TensorView y) {
  const int64_t rows = x.dim(0);
  const size_t row_bytes = static_cast<size_t>(x.dim(1)) * size_of(x.dtype());
  const auto* from = static_cast<const char*>(x.raw());
  auto* to = static_cast<char*>(y.raw());
  const int32_t* offset = offsets ? offsets.data<int32_t>() : nullptr;
  const int64_t of_row = rows == 0 ? 0 : members.num_elements() / rows;  // without offsets
  const int32_t* member = members.data<int32_t>();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t first = offset ? offset[i] : i * of_row;
    const int64_t last = offset ? offset[i + 1] : first + of_row;
    for (int64_t j = first; j < last; ++j) {
      if (member[j] < 0) continue;
      std::memcpy(to + static_cast<size_t>(member[j] - first_row) * row_bytes,
                  from + static_cast<size_t>(i) * row_bytes, row_bytes);
    }
  }
}

void sum_rows(Stream&, ConstTensorView x, ConstTensorView offsets, ConstTensorView members,
              int64_t first_row, TensorView y) {
  const int64_t rows = y.dim(0), width = y.dim(1);
  const int32_t* offset = offsets ? offsets.data<int32_t>() : nullptr;
  const int64_t all = members ? members.num_elements() : x.dim(0);
  const int64_t of_row = rows == 0 ? 0 : all / rows;  // without offsets
  const int32_t* member = members ? members.data<int32_t>() : nullptr;
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t first = offset ? offset[i] : i * of_row;
      const int64_t last = offset ? offset[i + 1] : first + of_row;
      const T* from = x.data<T>() - first_row * width;
      T* to = y.data<T>() + i * width;
      if (member) {
        sum_members(from, std::span(member + first, member + last), width, to);
      } else {
        sum_members(from, std::views::iota(first, last), width, to);
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
