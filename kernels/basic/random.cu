#include "kernels/basic/random.h"

#include "kernels/cuda/launch.h"
#include "kernels/inline/philox_normal.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;

// A box of a tensor; shapes and offsets are [slices, rows, columns].
struct Box {
  int64_t rows, columns, global_rows, global_columns;
  int64_t first_slice, first_row, first_column;
  int64_t num_elements;
};

__global__ void init_normal_kernel(RandomKey key, float std, Box box, float* y) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= box.num_elements) return;
  const int64_t row = box.first_row + i / box.columns % box.rows;
  const int64_t slice = box.first_slice + i / (box.columns * box.rows);
  const int64_t column = box.first_column + i % box.columns;
  const int64_t index = (slice * box.global_rows + row) * box.global_columns + column;
  y[i] = std * normal_at(key, static_cast<uint64_t>(index));
}

}  // namespace

void cuda::init_normal(Stream& stream, RandomKey key, float std, const Shape& global_shape,
                       const Shape& offset, TensorView y) {
  const int rank = y.rank();
  const auto at = [rank](const Shape& shape, int i, int64_t missing) {
    return i - 3 + rank >= 0 ? shape[i - 3 + rank] : missing;
  };
  const Box box{.rows = at(y.shape(), 1, 1),
                .columns = at(y.shape(), 2, 1),
                .global_rows = at(global_shape, 1, 1),
                .global_columns = at(global_shape, 2, 1),
                .first_slice = at(offset, 0, 0),
                .first_row = at(offset, 1, 0),
                .first_column = at(offset, 2, 0),
                .num_elements = y.num_elements()};
  launch(init_normal_kernel, num_blocks(box.num_elements, kThreads), kThreads, 0, stream, key, std,
         box, y.data<float>());
}

}  // namespace switchyard
