#pragma once

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// y = x, converted between f32 and bf16 where the dtypes differ
using Cast = void(Stream&, ConstTensorView x, TensorView y);
// y = x, any dtype, the same for both. A stream of a CUDA device also copies between host and
// device. With ordinary host memory, the values of x have been read and those of y written when the
// call returns. A PinnedBuffer must not be changed until the stream has finished the copy.
using Copy = void(Stream&, ConstTensorView x, TensorView y);
// y += x; x and y are each f32 or bf16
using Add = void(Stream&, ConstTensorView x, TensorView y);
// y = 0, any dtype
using FillZero = void(Stream&, TensorView y);
// y *= factor
//   y  f32
using Scale = void(Stream&, float factor, TensorView y);
// y[t] += bias
//   bias [width] f32, y [rows, width]
using AddBias = void(Stream&, ConstTensorView bias, TensorView y);
// dbias += sum over rows of dy
//   dy [rows, width], dbias [width] f32
using AddBiasBackward = void(Stream&, Workspace&, ConstTensorView dy, TensorView dbias);
// total += factor * sum of x, or of its squares; in double, in an order that does not depend on the
// number of threads.
//   x  f32, total [1] f64
using AddSum = void(Stream&, ConstTensorView x, double factor, TensorView total);
using AddSumOfSquares = void(Stream&, ConstTensorView x, double factor, TensorView total);
// totals += sum over rows of x
//   x  [rows, width] f32, totals [width] f64
using AddColumnSums = void(Stream&, ConstTensorView x, TensorView totals);

Cast cast;
Copy copy;
Add add;
FillZero fill_zero;
Scale scale;
AddBias add_bias;
AddBiasBackward add_bias_backward;
AddSum add_sum;
AddSumOfSquares add_sum_of_squares;
AddColumnSums add_column_sums;

namespace cpu {
Cast cast;
Copy copy;
Add add;
FillZero fill_zero;
Scale scale;
AddBias add_bias;
AddBiasBackward add_bias_backward;
AddSum add_sum;
AddSumOfSquares add_sum_of_squares;
AddColumnSums add_column_sums;
}  // namespace cpu
namespace cuda {
Cast cast;
Copy copy;
Add add;
FillZero fill_zero;
Scale scale;
AddBias add_bias;
AddBiasBackward add_bias_backward;
AddSum add_sum;
AddSumOfSquares add_sum_of_squares;
AddColumnSums add_column_sums;
}  // namespace cuda

}  // namespace switchyard
