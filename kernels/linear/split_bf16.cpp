#include "kernels/linear/split_bf16.h"

#include "kernels/inline/bf16_terms.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

// Three parts that are not [3 rows, columns] or [rows, 3 columns] are not those of `whole`.
void require_parts(ConstTensorView parts, ConstTensorView whole) {
  require(whole.rank() == 2, "a tensor of shape {} is not split", whole.shape());
  const int64_t rows = whole.dim(0), columns = whole.dim(1);
  require(parts.shape() == Shape{3 * rows, columns} || parts.shape() == Shape{rows, 3 * columns},
          "parts of shape {} are not three of {}", parts.shape(), whole.shape());
}

}  // namespace

void split_bf16(Stream& stream, ConstTensorView x, const std::array<Term, 3>& terms,
                TensorView out) {
  require_parts(out, x);
  require_dtype(x, DType::f32, "x");
  require_dtype(out, DType::bf16, "out");
  SWITCHYARD_BODY(stream, split_bf16)(stream, x, terms, out);
}

void join_terms(Stream& stream, ConstTensorView x, Accumulate accumulate, TensorView y) {
  require_parts(x, y);
  require_dtype(x, DType::f32, "x");
  require_dtype(y, DType::f32, "y");
  SWITCHYARD_BODY(stream, join_terms)(stream, x, accumulate, y);
}

void cpu::split_bf16(Stream&, ConstTensorView x, const std::array<Term, 3>& terms, TensorView out) {
  const PartPlaces places(x, out);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    for (int part = 0; part < 3; ++part) {
      const int term = static_cast<int>(terms[static_cast<size_t>(part)]);
      out.data<bfloat16>()[places.at(i, part)] = bf16_term(x.data<float>()[i], term);
    }
  }
}

void cpu::join_terms(Stream&, ConstTensorView x, Accumulate accumulate, TensorView y) {
  const PartPlaces places(y, x);
  const float* from = x.data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < y.num_elements(); ++i) {
    const float sum = from[places.at(i, 0)] + from[places.at(i, 1)] + from[places.at(i, 2)];
    float& to = y.data<float>()[i];
    to = accumulate == Accumulate::yes ? to + sum : sum;
  }
}

}  // namespace switchyard
