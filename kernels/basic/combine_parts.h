#pragma once

#include <span>

#include "kernels/runtime/tensor.h"

namespace switchyard {

enum class ReduceOp { sum, max, min };

// The largest number of parts that a CUDA device combines at a time.
inline constexpr size_t kMaxParts = 256;

// out = parts[0] op parts[1] op ..., element by element and in this order, so that the same parts
// give the same bits. Reductions over ranks use it. bf16 is combined in f32 and rounded once. The
// result is NaN if any part is NaN, also for max and min.
//   parts  equal shapes, dtype f32, bf16, f64, i32 or i64; at least one
//   out    shape and dtype of the parts; may be one of the parts
using CombineParts = void(Stream&, std::span<const ConstTensorView> parts, ReduceOp op,
                          TensorView out);

CombineParts combine_parts;

namespace cpu {
CombineParts combine_parts;
}  // namespace cpu
namespace cuda {
CombineParts combine_parts;
}  // namespace cuda

}  // namespace switchyard
