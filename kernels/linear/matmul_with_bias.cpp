#include "kernels/linear/matmul_with_bias.h"

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void matmul_with_bias(Stream& stream, ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                      Transpose transpose_b, ConstTensorView bias, TensorView c) {
  const int ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  require(a.rank() == 2 && b.rank() == 2 && a.dim(1 - ta) == b.dim(tb),
          "inner dimensions differ: a {}{}, b {}{}", a.shape(), ta ? " transposed" : "", b.shape(),
          tb ? " transposed" : "");
  require_dtype(b, a.dtype(), "b");
  require_dtype(bias, DType::f32, "bias");
  require_dtype(c, a.dtype(), "c");
  require_shape(bias, {b.dim(1 - tb)}, "bias");
  require_shape(c, {a.dim(ta), b.dim(1 - tb)}, "c");
  if (WorkObserver* observer = stream.observer()) {
    observer->products({ProductKind::forward, a.dtype(), c.dim(0), c.dim(1), a.dim(1 - ta)});
  }
  SWITCHYARD_BODY(stream, matmul_with_bias)(stream, a, transpose_a, b, transpose_b, bias, c);
}

void cpu::matmul_with_bias(Stream& stream, ConstTensorView a, Transpose transpose_a,
                           ConstTensorView b, Transpose transpose_b, ConstTensorView bias,
                           TensorView c) {
  cpu::matmul(stream, a, transpose_a, b, transpose_b, Accumulate::no, c);
  cpu::add_bias(stream, bias, c);
}

}  // namespace switchyard
