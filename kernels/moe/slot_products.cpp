#include "kernels/moe/slot_products.h"

#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void slot_products(Stream& stream, ConstTensorView x, ConstTensorView dispatch_idx,
                   ConstTensorView weight, TensorView y) {
  require(dispatch_idx.rank() == 2, "dispatch_idx has shape {}, expected [tokens, top_k]",
          dispatch_idx.shape());
  require_dtype(dispatch_idx, DType::i32, "dispatch_idx");
  require(weight.rank() == 3, "weight has shape {}, expected [experts, out, in]", weight.shape());
  const int64_t slots = dispatch_idx.num_elements();
  const bool of_tokens = x.dim(0) == dispatch_idx.dim(0);
  require_shape(x, {of_tokens ? dispatch_idx.dim(0) : slots, weight.dim(2)}, "x");
  require_shape(y, {slots, weight.dim(1)}, "y");
  require_dtype(weight, x.dtype(), "weight");
  require_dtype(y, x.dtype(), "y");
  SWITCHYARD_BODY(stream, slot_products)(stream, x, dispatch_idx, weight, y);
}

namespace cpu {

void slot_products(Stream&, ConstTensorView x, ConstTensorView dispatch_idx, ConstTensorView weight,
                   TensorView y) {
  const int64_t slots = dispatch_idx.num_elements(), out = weight.dim(1), in = weight.dim(2);
  const int64_t of_row = x.dim(0) == 0 ? 1 : slots / x.dim(0);
  const int32_t* experts = dispatch_idx.data<int32_t>();
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
#pragma omp parallel for
    for (int64_t slot = 0; slot < slots; ++slot) {
      const T* row = x.data<T>() + slot / of_row * in;
      for (int64_t o = 0; o < out; ++o) {
        float sum = 0.0f;
        if (experts[slot] >= 0) {
          const T* column = weight.data<T>() + (experts[slot] * out + o) * in;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < in; ++i) {
            sum += static_cast<float>(row[i]) * static_cast<float>(column[i]);
          }
        }
        y.data<T>()[slot * out + o] = sum;
      }
    }
  });
}

}  // namespace cpu
}  // namespace switchyard
