#include "kernels/basic/combine_parts.h"

#include <algorithm>

#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void combine_parts(Stream& stream, std::span<const ConstTensorView> parts, ReduceOp op,
                   TensorView out) {
  require(!parts.empty(), "combine_parts needs at least one part");
  for (const ConstTensorView& part : parts) {
    require_shape(part, out.shape(), "a part");
    require_dtype(part, out.dtype(), "a part");
    require_on_device(part, stream.device(), "combine_parts");
  }
  SWITCHYARD_BODY(stream, combine_parts)(stream, parts, op, out);
}

namespace cpu {
namespace {

// The loop adds part by part over chunks that stay in the first-level cache: with the parts in the
// inner loop GCC does not vectorise, which is four times slower.
template <class T, class Accumulator, class Combine>
void combine_in_order(std::span<const ConstTensorView> parts, Combine combine, TensorView out) {
  constexpr int64_t kChunk = 1024;
  const int64_t n = out.num_elements();
  T* result = out.data<T>();
#pragma omp parallel for schedule(static) if (n >= 64 * kChunk)
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = std::min(kChunk, n - begin);
    Accumulator total[kChunk];
    const T* values = parts[0].data<T>() + begin;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) total[i] = static_cast<Accumulator>(values[i]);
    for (size_t p = 1; p < parts.size(); ++p) {
      values = parts[p].data<T>() + begin;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        total[i] = combine(total[i], static_cast<Accumulator>(values[i]));
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) result[begin + i] = T(total[i]);
  }
}

template <class T, class Accumulator = T>
void combine_dtype(std::span<const ConstTensorView> parts, ReduceOp op, TensorView out) {
  using A = Accumulator;
  switch (op) {
    case ReduceOp::sum:
      return combine_in_order<T, A>(
          parts, [](A a, A b) { return a + b; }, out);
    case ReduceOp::max:
      return combine_in_order<T, A>(
          parts, [](A a, A b) { return a != a || a > b ? a : b; }, out);
    case ReduceOp::min:
      return combine_in_order<T, A>(
          parts, [](A a, A b) { return a != a || a < b ? a : b; }, out);
  }
}

}  // namespace

void combine_parts(Stream&, std::span<const ConstTensorView> parts, ReduceOp op, TensorView out) {
  switch (out.dtype()) {
    case DType::f32:
      return combine_dtype<float>(parts, op, out);
    case DType::bf16:
      return combine_dtype<bfloat16, float>(parts, op, out);
    case DType::f64:
      return combine_dtype<double>(parts, op, out);
    case DType::i32:
      return combine_dtype<int32_t>(parts, op, out);
    case DType::i64:
      return combine_dtype<int64_t>(parts, op, out);
    default:
      fail("{} is not reduced", to_string(out.dtype()));
  }
}

}  // namespace cpu
}  // namespace switchyard
