#pragma once

#include <span>

#include "kernels/runtime/tensor.h"

namespace switchyard {

enum class ReduceOp { sum, max, min };

// Most parts that a CUDA device combines at a time.
inline constexpr size_t kMaxParts = 256;

// out = parts[0] op parts[1] op ..., element by element and in this order, so that the same parts
// give the same bits: what reductions over ranks are made of. bf16 is combined in f32 and rounded
// once. A NaN wins over any other value, with max and min too.
//   parts  equal shapes, dtype f32, bf16, f64, i32 or i64; at least one
//   out    as each of them; may be one of them
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
