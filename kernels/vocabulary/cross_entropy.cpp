#include "kernels/vocabulary/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/inline/vector_math.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

void check_rows(ConstTensorView per_row, int64_t tokens, DType dtype, const char* name) {
  require_shape(per_row, {tokens}, name);
  require_dtype(per_row, dtype, name);
}

int64_t rows_of(ConstTensorView logits) {
  require(logits.rank() == 2, "logits have shape {}, expected [tokens, vocab]", logits.shape());
  require_dtype(logits, DType::f32, "logits");
  return logits.dim(0);
}

}  // namespace

void cross_entropy_forward(Stream& stream, ConstTensorView logits, ConstTensorView targets,
                           IdRange ids, TensorView row_max, TensorView sum_exp,
                           TensorView target_logit) {
  const int64_t tokens = rows_of(logits);
  check_rows(targets, tokens, DType::i32, "targets");
  check_rows(row_max, tokens, DType::f32, "row_max");
  check_rows(sum_exp, tokens, DType::f32, "sum_exp");
  check_rows(target_logit, tokens, DType::f32, "target_logit");
  SWITCHYARD_BODY(stream, cross_entropy_forward)
  (stream, logits, targets, ids, row_max, sum_exp, target_logit);
}

void cross_entropy_rescale(Stream& stream, ConstTensorView local_max, ConstTensorView row_max,
                           TensorView sum_exp) {
  const int64_t tokens = local_max.num_elements();
  check_rows(local_max, tokens, DType::f32, "local_max");
  check_rows(row_max, tokens, DType::f32, "row_max");
  check_rows(sum_exp, tokens, DType::f32, "sum_exp");
  SWITCHYARD_BODY(stream, cross_entropy_rescale)(stream, local_max, row_max, sum_exp);
}

void cross_entropy_losses(Stream& stream, ConstTensorView targets, ConstTensorView row_max,
                          ConstTensorView sum_exp, ConstTensorView target_logit,
                          TensorView losses) {
  const int64_t tokens = targets.num_elements();
  check_rows(targets, tokens, DType::i32, "targets");
  check_rows(row_max, tokens, DType::f32, "row_max");
  check_rows(sum_exp, tokens, DType::f32, "sum_exp");
  check_rows(target_logit, tokens, DType::f32, "target_logit");
  check_rows(losses, tokens, DType::f32, "losses");
  SWITCHYARD_BODY(stream, cross_entropy_losses)
  (stream, targets, row_max, sum_exp, target_logit, losses);
}

void cross_entropy_backward(Stream& stream, ConstTensorView logits, ConstTensorView targets,
                            IdRange ids, ConstTensorView row_max, ConstTensorView sum_exp,
                            float scale, TensorView dlogits) {
  const int64_t tokens = rows_of(logits);
  check_rows(targets, tokens, DType::i32, "targets");
  check_rows(row_max, tokens, DType::f32, "row_max");
  check_rows(sum_exp, tokens, DType::f32, "sum_exp");
  require_shape(dlogits, logits.shape(), "dlogits");
  SWITCHYARD_BODY(stream, cross_entropy_backward)
  (stream, logits, targets, ids, row_max, sum_exp, scale, dlogits);
}

void mask_columns(Stream& stream, int64_t vocab, TensorView logits) {
  require(logits.rank() == 2 && vocab <= logits.dim(1), "{} ids do not fit logits of shape {}",
          vocab, logits.shape());
  require_dtype(logits, DType::f32, "logits");
  SWITCHYARD_BODY(stream, mask_columns)(stream, vocab, logits);
}

namespace cpu {

void cross_entropy_forward(Stream&, ConstTensorView logits, ConstTensorView targets, IdRange ids,
                           TensorView row_max, TensorView sum_exp, TensorView target_logit) {
  const int64_t tokens = logits.dim(0), vocab = logits.dim(1);
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = logits.data<float>() + t * vocab;
    float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < vocab; ++i) largest = std::max(largest, row[i]);
    // The row is still in the cache. max ignores NaN; this sum passes a NaN on to the loss.
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < vocab; ++i) total += fast_exp(row[i] - largest);
    row_max.data<float>()[t] = largest;
    sum_exp.data<float>()[t] = total;
    const int32_t target = targets.data<int32_t>()[t];
    target_logit.data<float>()[t] = ids.has(target, vocab) ? row[target - ids.first] : 0.0f;
  }
}

void cross_entropy_rescale(Stream&, ConstTensorView local_max, ConstTensorView row_max,
                           TensorView sum_exp) {
  for (int64_t t = 0; t < local_max.num_elements(); ++t) {
    sum_exp.data<float>()[t] *= std::exp(local_max.data<float>()[t] - row_max.data<float>()[t]);
  }
}

void cross_entropy_losses(Stream&, ConstTensorView targets, ConstTensorView row_max,
                          ConstTensorView sum_exp, ConstTensorView target_logit,
                          TensorView losses) {
  const int64_t tokens = targets.num_elements();
  for (int64_t t = 0; t < tokens; ++t) {
    const bool counts = targets.data<int32_t>()[t] >= 0;
    // The difference is computed first: the two values are close if the loss is small.
    const float gap = row_max.data<float>()[t] - target_logit.data<float>()[t];
    losses.data<float>()[t] = counts ? std::log(sum_exp.data<float>()[t]) + gap : 0.0f;
  }
}

void cross_entropy_backward(Stream&, ConstTensorView logits, ConstTensorView targets, IdRange ids,
                            ConstTensorView row_max, ConstTensorView sum_exp, float scale,
                            TensorView dlogits) {
  const int64_t tokens = logits.dim(0), vocab = logits.dim(1);
  dispatch_compute_dtype(dlogits.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = logits.data<float>() + t * vocab;
      T* drow = dlogits.data<T>() + t * vocab;
      const int32_t id = targets.data<int32_t>()[t];
      if (id < 0) {
        std::fill_n(drow, vocab, T(0.0f));
        continue;
      }
      const float largest = row_max.data<float>()[t];
      const float by_sum = scale / sum_exp.data<float>()[t];
      const int64_t target = id - ids.first;
      const bool here = ids.has(id, vocab);
      const float target_prob = here ? by_sum * fast_exp(row[target] - largest) : 0.0f;
#pragma omp simd
      for (int64_t i = 0; i < vocab; ++i) drow[i] = by_sum * fast_exp(row[i] - largest);
      if (here) drow[target] = target_prob - scale;
    }
  });
}

void mask_columns(Stream&, int64_t vocab, TensorView logits) {
  const int64_t columns = logits.dim(1);
  for (int64_t t = 0; t < logits.dim(0); ++t) {
    float* row = logits.data<float>() + t * columns;
    std::fill(row + vocab, row + columns, -std::numeric_limits<float>::infinity());
  }
}

}  // namespace cpu
}  // namespace switchyard
