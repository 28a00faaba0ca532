#include "kernels/decode/fetch_rows.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void find_rows(Stream& stream, ConstTensorView held, ConstTensorView wanted, int64_t missing_slot,
               int64_t known, TensorView slots, TensorView missing, TensorView figures) {
  require(wanted.rank() == 3, "wanted has shape {}, expected [batch, kv_heads, count]",
          wanted.shape());
  require_dtype(wanted, DType::i32, "wanted");
  if (held) {
    require(held.rank() == 3, "held has shape {}, expected [batch, kv_heads, count]", held.shape());
    require_shape(held, {wanted.dim(0), wanted.dim(1), held.dim(2)}, "held");
    require_dtype(held, DType::i32, "held");
    require(held.dim(2) <= missing_slot, "{} held rows exceed the {} slots before the missing ones",
            held.dim(2), missing_slot);
  }
  require_shape(slots, wanted.shape(), "slots");
  require_dtype(slots, DType::i32, "slots");
  require_shape(missing, wanted.shape(), "missing");
  require_dtype(missing, DType::i32, "missing");
  require_shape(figures, {wanted.dim(0), wanted.dim(1), 2}, "figures");
  require_dtype(figures, DType::i32, "figures");
  SWITCHYARD_BODY(stream, find_rows)
  (stream, held, wanted, missing_slot, known, slots, missing, figures);
}

void fetch_rows(Stream& stream, ConstTensorView far_k, ConstTensorView far_v,
                ConstTensorView positions, int64_t length, int64_t first_slot, TensorView near_k,
                TensorView near_v) {
  require(
      far_k.rank() == 4 && near_k.rank() == 4 && positions.rank() == 3,
      "far_k has shape {}, near_k {} and positions {}, expected four, four and three dimensions",
      far_k.shape(), near_k.shape(), positions.shape());
  const int64_t batch = far_k.dim(0), heads = far_k.dim(1), head_dim = far_k.dim(3);
  require_shape(far_v, far_k.shape(), "far_v");
  require_dtype(far_v, far_k.dtype(), "far_v");
  require(length <= far_k.dim(2), "{} positions exceed the {} of the cache", length, far_k.dim(2));
  require_shape(positions, {batch, heads, positions.dim(2)}, "positions");
  require_dtype(positions, DType::i32, "positions");
  require_shape(near_k, {batch, heads, near_k.dim(2), head_dim}, "near_k");
  require_dtype(near_k, far_k.dtype(), "near_k");
  require_shape(near_v, near_k.shape(), "near_v");
  require_dtype(near_v, far_k.dtype(), "near_v");
  require(first_slot + positions.dim(2) <= near_k.dim(2), "{} rows from slot {} on exceed {} slots",
          positions.dim(2), first_slot, near_k.dim(2));
  SWITCHYARD_BODY(stream, fetch_rows)
  (stream, far_k, far_v, positions, length, first_slot, near_k, near_v);
}

void cpu::find_rows(Stream&, ConstTensorView held, ConstTensorView wanted, int64_t missing_slot,
                    int64_t known, TensorView slots, TensorView missing, TensorView figures) {
  const int64_t rows = wanted.dim(0) * wanted.dim(1), count = wanted.dim(2);
  const int64_t num_held = held ? held.dim(2) : 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t* next = held ? held.data<int32_t>() + row * num_held : nullptr;
    const int32_t *const first = next, *const end = next + num_held;
    for (int64_t i = row * count; i < (row + 1) * count; ++i) {
      const int32_t position = wanted.data<int32_t>()[i];
      while (next != end && *next < position) ++next;
      const bool is_held = next != end && *next == position;
      slots.data<int32_t>()[i] =
          static_cast<int32_t>(is_held ? next - first : missing_slot + i - row * count);
      missing.data<int32_t>()[i] = is_held ? -1 : position;
      if (position >= known) continue;
      ++figures.data<int32_t>()[2 * row];
      if (!is_held) ++figures.data<int32_t>()[2 * row + 1];
    }
  }
}

void cpu::fetch_rows(Stream&, ConstTensorView far_k, ConstTensorView far_v,
                     ConstTensorView positions, int64_t length, int64_t first_slot,
                     TensorView near_k, TensorView near_v) {
  const int64_t rows = positions.dim(0) * positions.dim(1), count = positions.dim(2);
  const size_t bytes = static_cast<size_t>(far_k.dim(3)) * size_of(far_k.dtype());
  const auto copy_row = [&](ConstTensorView from, int64_t row, int64_t position, TensorView to,
                            int64_t slot) {
    std::memcpy(
        static_cast<std::byte*>(to.raw()) + static_cast<size_t>(row * to.dim(2) + slot) * bytes,
        static_cast<const std::byte*>(from.raw()) +
            static_cast<size_t>(row * from.dim(2) + position) * bytes,
        bytes);
  };
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t position = positions.data<int32_t>()[row * count + i];
      if (position < 0 || position >= length) continue;
      copy_row(far_k, row, position, near_k, first_slot + i);
      copy_row(far_v, row, position, near_v, first_slot + i);
    }
  }
}

}  // namespace switchyard
