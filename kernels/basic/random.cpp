#include "kernels/basic/random.h"

#include <cmath>

#include "kernels/inline/philox_normal.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

uint64_t hash64(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

uint64_t stream_id(std::string_view name) { return hash64(name); }

uint64_t random_bits(RandomKey key, uint64_t index) {
  const auto words = draw_words(key, index);
  return static_cast<uint64_t>(words[1]) << 32 | words[0];
}

double random_uniform(RandomKey key, uint64_t index) {
  return (static_cast<double>(random_bits(key, index) >> 12) + 0.5) * 0x1p-52;
}

void init_normal(Stream& stream, RandomKey key, float std, const Shape& global_shape,
                 const Shape& offset, TensorView y) {
  require(global_shape.rank() >= 1 && global_shape.rank() <= 3 &&
              offset.rank() == global_shape.rank() && y.rank() == global_shape.rank(),
          "init_normal: the box {} of {} must have 1 to 3 dimensions", y.shape(), global_shape);
  for (int i = 0; i < y.rank(); ++i) {
    require(offset[i] >= 0 && offset[i] + y.dim(i) <= global_shape[i],
            "init_normal: the box {} at {} exceeds {}", y.shape(), offset, global_shape);
  }
  SWITCHYARD_BODY(stream, init_normal)(stream, key, std, global_shape, offset, y);
}

namespace cpu {

void init_normal(Stream&, RandomKey key, float std, const Shape& global_shape, const Shape& offset,
                 TensorView y) {
  // Shapes and offsets are extended to three dimensions [slices, rows, columns].
  const int rank = y.rank();
  const auto at = [rank](const Shape& shape, int i, int64_t missing) {
    return i - 3 + rank >= 0 ? shape[i - 3 + rank] : missing;
  };
  const int64_t rows = at(y.shape(), 1, 1), columns = at(y.shape(), 2, 1);
  const int64_t global_rows = at(global_shape, 1, 1), global_columns = at(global_shape, 2, 1);
  const int64_t first_slice = at(offset, 0, 0), first_row = at(offset, 1, 0);
  const int64_t first_column = at(offset, 2, 0);
  float* out = y.data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < at(y.shape(), 0, 1) * rows; ++r) {
    const int64_t slice = first_slice + r / rows, row = first_row + r % rows;
    const int64_t begin = (slice * global_rows + row) * global_columns + first_column;
    for (int64_t c = 0; c < columns; ++c) {
      out[r * columns + c] = std * normal_at(key, static_cast<uint64_t>(begin + c));
    }
  }
}

}  // namespace cpu
}  // namespace switchyard
