#pragma once

#include <array>

#include "kernels/linear/matmul.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Products of f32 values by bf16 products: f32's 24 bits are those of three bf16 numbers, so
//   x = hi + mid + lo,  hi = bf16(x),  mid = bf16(x - hi),  lo = bf16(x - hi - mid)
// exactly, unless a part is less than the least normal number. Products of bf16 numbers are exact
// in f32, so a sum over all three terms has the error of an f32 product.

enum class Term : int { hi, mid, lo };

// Writes three terms of x one above the other, or side by side.
//   x      [rows, columns] f32
//   terms  in the order in which they stand
//   out    bf16 [3 rows, columns] or [rows, 3 columns]
using SplitBf16 = void(Stream&, ConstTensorView x, const std::array<Term, 3>& terms,
                       TensorView out);
inline constexpr std::array kAllTerms{Term::hi, Term::mid, Term::lo};

// y = or += (a + b) + c for the three parts of x, one above the other or side by side.
//   x  f32 [3 rows, columns] or [rows, 3 columns]
//   y  [rows, columns] f32
using JoinTerms = void(Stream&, ConstTensorView x, Accumulate accumulate, TensorView y);

SplitBf16 split_bf16;
JoinTerms join_terms;

namespace cpu {
SplitBf16 split_bf16;
JoinTerms join_terms;
}  // namespace cpu
namespace cuda {
SplitBf16 split_bf16;
JoinTerms join_terms;
}  // namespace cuda

}  // namespace switchyard
