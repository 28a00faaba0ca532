#include "kernels/moe/permute.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarpSize;

// One warp copies a row, in pieces of 16 bytes or of one element.
template <class Piece>
__global__ void gather_rows_kernel(const Piece* x, const int32_t* source_row, int64_t out_rows,
                                   int64_t pieces, Piece* y) {
  const int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarpSize;
  if (row >= out_rows) return;
  const Piece* from = x + source_row[row] * pieces;
  Piece* to = y + row * pieces;
  // Streaming stores leave the cache to rows of x, which may be read again.
#pragma unroll 4
  for (int64_t i = threadIdx.x % kWarpSize; i < pieces; i += kWarpSize) __stcs(to + i, from[i]);
}

// Calls copy.operator()<Piece>(pieces of a row): 16 bytes each, or one element.
template <class Copy>
void copy_pieces(ConstTensorView x, TensorView y, const Copy& copy) {
  const size_t row_bytes = static_cast<size_t>(x.dim(1)) * size_of(x.dtype());
  const auto with = [&]<class Piece>() {
    copy.template operator()<Piece>(static_cast<int64_t>(row_bytes / sizeof(Piece)));
  };
  if (row_bytes % sizeof(uint4) == 0 && allow_vectors(x.raw(), y.raw())) {
    with.template operator()<uint4>();
  } else if (size_of(x.dtype()) == sizeof(uint32_t)) {
    with.template operator()<uint32_t>();
  } else {
    with.template operator()<uint16_t>();
  }
}

// One warp per row of x, which it holds in registers, some pieces of each lane at a time, while it
// writes all copies. Without offsets a row has of_row members.
template <class Piece>
__global__ void __launch_bounds__(kThreads)
    spread_rows_kernel(const Piece* x, const int32_t* offsets, int64_t of_row,
                       const int32_t* members, int64_t first_row, int64_t rows, int64_t pieces,
                       Piece* y) {
  constexpr int kHeld = 4;
  const int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarpSize;
  if (row >= rows) return;
  const int64_t begin = offsets ? offsets[row] : row * of_row;
  const int64_t end = offsets ? offsets[row + 1] : begin + of_row;
  for (int64_t i = threadIdx.x % kWarpSize; i < pieces; i += kWarpSize * kHeld) {
    Piece held[kHeld];
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      // Neither what is read nor what is written is needed again soon.
      if (i + h * kWarpSize < pieces) held[h] = __ldcs(x + row * pieces + i + h * kWarpSize);
    }
    for (int64_t j = begin; j < end; ++j) {
      const int64_t member = members[j];
      if (member < 0) continue;
      Piece* to = y + (member - first_row) * pieces + i;
#pragma unroll
      for (int h = 0; h < kHeld; ++h) {
        if (i + h * kWarpSize < pieces) __stcs(to + h * kWarpSize, held[h]);
      }
    }
  }
}

// One warp per row of y; a lane holds the sums of kSize neighbouring columns while it loops over
// the members. Without offsets a row has of_row members, without members its neighbours.
template <int kSize, class T>
__global__ void sum_rows_kernel(const T* x, const int32_t* offsets, int64_t of_row,
                                const int32_t* members, int64_t out_rows, int64_t width, T* y) {
  const int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarpSize;
  if (row >= out_rows) return;
  const int64_t begin = offsets ? offsets[row] : row * of_row;
  const int64_t end = offsets ? offsets[row + 1] : begin + of_row;
  for (int64_t i = (threadIdx.x % kWarpSize) * kSize; i < width; i += kWarpSize * kSize) {
    float sums[kSize] = {};
#pragma unroll 4
    for (int64_t j = begin; j < end; ++j) {
      const int64_t member = members ? members[j] : j;
      if (member < 0) continue;
      float values[kSize];
      load_floats<kSize>(x + member * width + i, values);
#pragma unroll
      for (int c = 0; c < kSize; ++c) sums[c] += values[c];
    }
    store_floats<kSize>(y + row * width + i, sums);
  }
}

__global__ void gather_values_kernel(const uint32_t* x, const int32_t* index, int64_t n,
                                     uint32_t* y) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) y[i] = index[i] >= 0 ? x[index[i]] : 0;
}

__global__ void scatter_values_kernel(const uint32_t* x, const int32_t* index, int64_t n,
                                      uint32_t* y) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n && index[i] >= 0) y[index[i]] = x[i];
}

}  // namespace

void cuda::gather_values(Stream& stream, ConstTensorView x, ConstTensorView index, TensorView y) {
  const int64_t n = y.num_elements();
  launch(gather_values_kernel, num_blocks(n, kThreads), kThreads, 0, stream,
         static_cast<const uint32_t*>(x.raw()), index.data<int32_t>(), n,
         static_cast<uint32_t*>(y.raw()));
}

void cuda::scatter_values(Stream& stream, ConstTensorView x, ConstTensorView index, TensorView y) {
  const int64_t n = x.num_elements();
  launch(scatter_values_kernel, num_blocks(n, kThreads), kThreads, 0, stream,
         static_cast<const uint32_t*>(x.raw()), index.data<int32_t>(), n,
         static_cast<uint32_t*>(y.raw()));
}

void cuda::gather_rows(Stream& stream, ConstTensorView x, ConstTensorView source_row,
                       TensorView y) {
  copy_pieces(x, y, [&]<class Piece>(int64_t pieces) {
    launch(gather_rows_kernel<Piece>, num_blocks(y.dim(0), kRowsPerBlock), kThreads, 0, stream,
           static_cast<const Piece*>(x.raw()), source_row.data<int32_t>(), y.dim(0), pieces,
           static_cast<Piece*>(y.raw()));
  });
}

void cuda::spread_rows(Stream& stream, ConstTensorView x, ConstTensorView offsets,
                       ConstTensorView members, int64_t first_row, TensorView y) {
  const int64_t rows = x.dim(0), of_row = rows == 0 ? 0 : members.num_elements() / rows;
  copy_pieces(x, y, [&]<class Piece>(int64_t pieces) {
    launch(spread_rows_kernel<Piece>, num_blocks(rows, kRowsPerBlock), kThreads, 0, stream,
           static_cast<const Piece*>(x.raw()), offsets ? offsets.data<int32_t>() : nullptr, of_row,
           members.data<int32_t>(), first_row, rows, pieces, static_cast<Piece*>(y.raw()));
  });
}

void cuda::sum_rows(Stream& stream, ConstTensorView x, ConstTensorView offsets,
                    ConstTensorView members, int64_t first_row, TensorView y) {
  const int64_t all = members ? members.num_elements() : x.dim(0);
  const int64_t of_row = y.dim(0) == 0 ? 0 : all / y.dim(0);
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    constexpr int kSize = 16 / sizeof(T);
    const T* from = x.data<T>();
    T* to = y.data<T>();
    const bool wide = y.dim(1) % kSize == 0 && allow_vectors(from, to);
    launch(wide ? sum_rows_kernel<kSize, T> : sum_rows_kernel<1, T>,
           num_blocks(y.dim(0), kRowsPerBlock), kThreads, 0, stream, from - first_row * y.dim(1),
           offsets ? offsets.data<int32_t>() : nullptr, of_row,
           members ? members.data<int32_t>() : nullptr, y.dim(0), y.dim(1), to);
  });
}

}  // namespace switchyard
