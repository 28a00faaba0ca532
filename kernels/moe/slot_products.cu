#include "kernels/moe/slot_products.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
// A warp multiplies this many rows of a weight with this many rows of x at a time: two loads of
// each lane's 16 bytes are under way, and seldom has an expert more rows in a decoding step.
constexpr int kColumns = 2, kRows = 4;

struct Problem {
  int64_t slots, of_row, out, in;  // of_row: slots that read the same row of x
};

// The lanes of a warp share a row of the inner dimension, kSize neighbouring elements each. The sum
// of an output is added in an order that depends on nothing but `in`.
template <int kSize, class T>
__device__ void multiply(const Problem& p, const T* x, const T* weight, int64_t column,
                         const int64_t (&slot)[kRows], int rows, T* y) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float sums[kColumns][kRows] = {};
  for (int64_t i = lane * kSize; i < p.in; i += kWarpSize * kSize) {
    float w[kColumns][kSize], values[kSize];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t row = column + c < p.out ? column + c : column;
      load_floats<kSize>(weight + row * p.in + i, w[c]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      load_floats<kSize>(x + slot[r] / p.of_row * p.in + i, values);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int j = 0; j < kSize; ++j) sums[c][r] += w[c][j] * values[j];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float sum = warp_sum(sums[c][r]);
      if (lane == 0 && column + c < p.out) y[slot[r] * p.out + column + c] = from_float<T>(sum);
    }
  }
}

// Block (columns, expert): every warp looks through all slots for those of its expert, and has
// nothing to do if there are none. The expert behind the last one stands for no expert.
template <int kSize, class T>
__global__ void __launch_bounds__(kThreads)
    slot_products_kernel(Problem p, const T* x, const int32_t* experts, const T* weight, T* y) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t column = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize) * kColumns;
  const int expert = blockIdx.y + 1 == gridDim.y ? -1 : static_cast<int>(blockIdx.y);
  if (column >= p.out) return;
  for (int64_t begin = 0; begin < p.slots; begin += kWarpSize) {
    const bool is_mine = begin + lane < p.slots && experts[begin + lane] == expert;
    uint32_t mine = __ballot_sync(kAllLanes, is_mine);
    while (mine != 0) {
      int64_t slot[kRows];
      int rows = 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (mine == 0) break;
        slot[r] = begin + __ffs(static_cast<int>(mine)) - 1;
        mine &= mine - 1;
        ++rows;
      }
      if (expert >= 0) {
        multiply<kSize>(p, x, weight + expert * p.out * p.in, column, slot, rows, y);
      } else if (lane < kColumns && column + lane < p.out) {
        for (int r = 0; r < rows; ++r) y[slot[r] * p.out + column + lane] = from_float<T>(0.0f);
      }
    }
  }
}

}  // namespace

void cuda::slot_products(Stream& stream, ConstTensorView x, ConstTensorView dispatch_idx,
                         ConstTensorView weight, TensorView y) {
  const int64_t slots = dispatch_idx.num_elements();
  if (slots == 0) return;
  const Problem p{
      .slots = slots, .of_row = slots / x.dim(0), .out = weight.dim(1), .in = weight.dim(2)};
  const dim3 grid(num_blocks(p.out, kWarps, kColumns),
                  static_cast<unsigned int>(weight.dim(0) + 1));
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    constexpr int kSize = 16 / sizeof(T);
    const bool wide = p.in % kSize == 0 && allow_vectors(x.raw(), weight.raw());
    launch(wide ? slot_products_kernel<kSize, T> : slot_products_kernel<1, T>, grid, kThreads, 0,
           stream, p, x.data<T>(), dispatch_idx.data<int32_t>(), weight.data<T>(), y.data<T>());
  });
}

}  // namespace switchyard
