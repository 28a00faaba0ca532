#pragma once

#include "kernels/tensor.h"

namespace switchyard {

// Cross-entropy over a vocabulary that is split over ranks: this rank holds the logits of ids
// [first_id, first_id + vocab). Each step's result is reduced over the ranks (max, then sum) before
// the next. The target -1 means: no loss for this token.

//   logits   [tokens, vocab] f32
//   row_max  [tokens] f32
using CrossEntropyRowMax = void(Stream&, ConstTensorView logits, TensorView row_max);

//   targets       [tokens] i32
//   sum_exp       [tokens] f32: sum of exp(logit - row_max) over this rank's ids
//   target_logit  [tokens] f32: the target's logit - row_max where this rank holds it, else 0
using CrossEntropySums = void(Stream&, ConstTensorView logits, ConstTensorView targets,
                              int64_t first_id, ConstTensorView row_max, TensorView sum_exp,
                              TensorView target_logit);

// losses[t] = log(sum_exp) - target_logit, 0 where there is no target
//   losses  [tokens] f32
using CrossEntropyLosses = void(Stream&, ConstTensorView targets, ConstTensorView sum_exp,
                                ConstTensorView target_logit, TensorView losses);

// dlogits = scale * (softmax - one_hot(target)), 0 in rows without target
//   dlogits  [tokens, vocab] f32 or bf16; may be logits
using CrossEntropyBackward = void(Stream&, ConstTensorView logits, ConstTensorView targets,
                                  int64_t first_id, ConstTensorView row_max,
                                  ConstTensorView sum_exp, float scale, TensorView dlogits);

CrossEntropyRowMax cross_entropy_row_max;
CrossEntropySums cross_entropy_sums;
CrossEntropyLosses cross_entropy_losses;
CrossEntropyBackward cross_entropy_backward;

namespace cpu {
CrossEntropyRowMax cross_entropy_row_max;
CrossEntropySums cross_entropy_sums;
CrossEntropyLosses cross_entropy_losses;
CrossEntropyBackward cross_entropy_backward;
}  // namespace cpu
namespace cuda {
CrossEntropyRowMax cross_entropy_row_max;
CrossEntropySums cross_entropy_sums;
CrossEntropyLosses cross_entropy_losses;
CrossEntropyBackward cross_entropy_backward;
}  // namespace cuda

}  // namespace switchyard
