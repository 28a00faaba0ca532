#include "kernels/decode/fetch_rows.h"

#include "kernels/cuda/launch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;

// A thread looks up one wanted position among the held ones of its head, by bisection.
__global__ void find_rows_kernel(const int32_t* held, int64_t num_held, const int32_t* wanted,
                                 int64_t count, int64_t missing_slot, int64_t known, int32_t* slots,
                                 int32_t* missing, int32_t* figures) {
  const int64_t row = blockIdx.y, i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const int32_t position = wanted[row * count + i];
  const int32_t* mine = held + row * num_held;
  int64_t low = 0, high = num_held;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (mine[middle] < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const bool is_held = low < num_held && mine[low] == position;
  slots[row * count + i] = static_cast<int32_t>(is_held ? low : missing_slot + i);
  missing[row * count + i] = is_held ? -1 : position;
  if (position >= known) return;
  atomicAdd(figures + 2 * row, 1);  // Sums of integers do not depend on their order.
  if (!is_held) atomicAdd(figures + 2 * row + 1, 1);
}

struct alignas(16) Vector {
  uint32_t words[4];
};

struct RowCopy {
  const void *far_k, *far_v;
  void *near_k, *near_v;
  int64_t max_len, num_slots, units;  // units of a row
};

// A block copies one row of K and of V. Neighbouring threads read neighbouring units, so that reads
// over the bus are as long as a row allows.
template <class Unit>
__global__ void fetch_rows_kernel(RowCopy c, const int32_t* positions, int64_t count,
                                  int64_t length, int64_t first_slot) {
  const int64_t row = blockIdx.y, i = blockIdx.x;
  const int64_t position = positions[row * count + i];
  if (position < 0 || position >= length) return;
  const int64_t from = (row * c.max_len + position) * c.units;
  const int64_t to = (row * c.num_slots + first_slot + i) * c.units;
  for (int64_t unit = threadIdx.x; unit < c.units; unit += blockDim.x) {
    static_cast<Unit*>(c.near_k)[to + unit] = static_cast<const Unit*>(c.far_k)[from + unit];
    static_cast<Unit*>(c.near_v)[to + unit] = static_cast<const Unit*>(c.far_v)[from + unit];
  }
}

}  // namespace

void cuda::find_rows(Stream& stream, ConstTensorView held, ConstTensorView wanted,
                     int64_t missing_slot, int64_t known, TensorView slots, TensorView missing,
                     TensorView figures) {
  const int64_t count = wanted.dim(2);
  const dim3 grid(num_blocks(count, kThreads),
                  static_cast<unsigned int>(wanted.dim(0) * wanted.dim(1)));
  launch(find_rows_kernel, grid, kThreads, 0, stream, held ? held.data<int32_t>() : nullptr,
         held ? held.dim(2) : 0, wanted.data<int32_t>(), count, missing_slot, known,
         slots.data<int32_t>(), missing.data<int32_t>(), figures.data<int32_t>());
}

void cuda::fetch_rows(Stream& stream, ConstTensorView far_k, ConstTensorView far_v,
                      ConstTensorView positions, int64_t length, int64_t first_slot,
                      TensorView near_k, TensorView near_v) {
  constexpr int kRowThreads = 32;
  const int64_t bytes = far_k.dim(3) * static_cast<int64_t>(size_of(far_k.dtype()));
  const bool wide = bytes % static_cast<int64_t>(sizeof(Vector)) == 0 &&
                    allow_vectors(far_k.raw(), far_v.raw(), near_k.raw(), near_v.raw());
  const int64_t unit = wide ? static_cast<int64_t>(sizeof(Vector)) : 2;  // of f32 and bf16
  const RowCopy c{.far_k = far_k.raw(),
                  .far_v = far_v.raw(),
                  .near_k = near_k.raw(),
                  .near_v = near_v.raw(),
                  .max_len = far_k.dim(2),
                  .num_slots = near_k.dim(2),
                  .units = bytes / unit};
  const int64_t count = positions.dim(2);
  const dim3 grid(static_cast<unsigned int>(count),
                  static_cast<unsigned int>(positions.dim(0) * positions.dim(1)));
  launch(wide ? fetch_rows_kernel<Vector> : fetch_rows_kernel<uint16_t>, grid, kRowThreads, 0,
         stream, c, positions.data<int32_t>(), count, length, first_slot);
}

}  // namespace switchyard
