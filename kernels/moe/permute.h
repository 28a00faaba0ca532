#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Both directions of the token permutation, as gathers: one thread or warp writes each output row,
// in a fixed order, so results are bitwise repeatable.

// y[i] = x[source_row[i]]
//   x           [rows, width]
//   source_row  [out_rows] i32
//   y           [out_rows, width]
using GatherRows = void(Stream&, ConstTensorView x, ConstTensorView source_row, TensorView y);

// y[members[j] - first_row] = x[i] for all j in [offsets[i], offsets[i + 1]): the transpose of
// SumRows, with the same lists. It reads each row of x once, however many rows of y it becomes,
// where GatherRows would read it once for each.
//   x        [rows, width]
//   offsets  [rows + 1] i32. Not given: all x[i] have the same number of members, and a member of
//            -1 stands for none.
//   members  i32; those that are not -1 differ
//   y        [out_rows, width]; rows that are no member are not changed
using SpreadRows = void(Stream&, ConstTensorView x, ConstTensorView offsets,
                        ConstTensorView members, int64_t first_row, TensorView y);

// y[i] = sum over j in [offsets[i], offsets[i + 1]) of x[members[j] - first_row], in that order, in
// f32
//   x        [rows, width]
//   offsets  [out_rows + 1] i32. Not given: all y[i] have the same number of members, and a member
//            of -1 stands for none.
//   members  i32. Not given either: 0, 1, 2, ... for all rows of x
//   y        [out_rows, width]; rows without members become zero
using SumRows = void(Stream&, ConstTensorView x, ConstTensorView offsets, ConstTensorView members,
                     int64_t first_row, TensorView y);

// Single values; x and y are both f32 or both i32.
// y[i] = x[index[i]], 0 where index[i] is -1. y may be index if x and y are i32.
//   index  [n] i32
//   y      [n]
using GatherValues = void(Stream&, ConstTensorView x, ConstTensorView index, TensorView y);
// y[index[i]] = x[i], unless index[i] is -1; all other indices must be distinct
//   x, index  [n]
using ScatterValues = void(Stream&, ConstTensorView x, ConstTensorView index, TensorView y);

GatherRows gather_rows;
SpreadRows spread_rows;
SumRows sum_rows;
GatherValues gather_values;
ScatterValues scatter_values;

namespace cpu {
GatherRows gather_rows;
SpreadRows spread_rows;
SumRows sum_rows;
GatherValues gather_values;
ScatterValues scatter_values;
}  // namespace cpu
namespace cuda {
GatherRows gather_rows;
SpreadRows spread_rows;
SumRows sum_rows;
GatherValues gather_values;
ScatterValues scatter_values;
}  // namespace cuda

}  // namespace switchyard
