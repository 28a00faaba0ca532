#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Cross-entropy over a vocabulary that is split over ranks: each holds the logits of some
// neighbouring ids, and perhaps columns behind them that no id has (mask_columns). The target -1
// means: no loss for this token.

// The ids of this rank. Without a count they are those of all columns.
struct IdRange {
  IdRange(int64_t first_id) : first(first_id) {}  // NOLINT: the range that begins there
  IdRange(int64_t first_id, int64_t num_ids) : first(first_id), count(num_ids) {}

  // Whether a column of this range is that of the target, and which.
  constexpr bool has(int64_t target, int64_t columns) const {
    return target >= first && target - first < (count < 0 ? columns : count);
  }

  int64_t first;
  int64_t count = -1;  // -1: as many as there are columns
};

// Computes this rank's statistics in one pass over the logits.
//   logits        [tokens, vocab] f32
//   targets       [tokens] i32
//   row_max       [tokens] f32
//   sum_exp       [tokens] f32: sum of exp(logit - row_max); NaN if a logit is NaN
//   target_logit  [tokens] f32: the target's logit where this rank holds it, else 0
using CrossEntropyForward = void(Stream&, ConstTensorView logits, ConstTensorView targets,
                                 IdRange ids, TensorView row_max, TensorView sum_exp,
                                 TensorView target_logit);

// sum_exp *= exp(local_max - row_max): rescales a rank's sums to the maximum over all ranks, so
// that they can be added over ranks. Target logits are added over ranks without rescaling.
//   local_max, row_max, sum_exp  [tokens] f32
using CrossEntropyRescale = void(Stream&, ConstTensorView local_max, ConstTensorView row_max,
                                 TensorView sum_exp);

// losses[t] = log(sum_exp) + row_max - target_logit, 0 where there is no target; the inputs are
// reduced over all ranks
//   losses  [tokens] f32
using CrossEntropyLosses = void(Stream&, ConstTensorView targets, ConstTensorView row_max,
                                ConstTensorView sum_exp, ConstTensorView target_logit,
                                TensorView losses);

// dlogits = scale * (softmax - one_hot(target)), 0 in rows without a target
//   dlogits  [tokens, vocab] f32 or bf16; may be logits
using CrossEntropyBackward = void(Stream&, ConstTensorView logits, ConstTensorView targets,
                                  IdRange ids, ConstTensorView row_max, ConstTensorView sum_exp,
                                  float scale, TensorView dlogits);

// Makes columns that no id has count as nothing in the ops above, and get no gradient:
//   logits  [tokens, columns] f32: -infinity from column `vocab` on
using MaskColumns = void(Stream&, int64_t vocab, TensorView logits);

CrossEntropyForward cross_entropy_forward;
CrossEntropyRescale cross_entropy_rescale;
CrossEntropyLosses cross_entropy_losses;
CrossEntropyBackward cross_entropy_backward;
MaskColumns mask_columns;

namespace cpu {
CrossEntropyForward cross_entropy_forward;
CrossEntropyRescale cross_entropy_rescale;
CrossEntropyLosses cross_entropy_losses;
CrossEntropyBackward cross_entropy_backward;
MaskColumns mask_columns;
}  // namespace cpu
namespace cuda {
CrossEntropyForward cross_entropy_forward;
CrossEntropyRescale cross_entropy_rescale;
CrossEntropyLosses cross_entropy_losses;
CrossEntropyBackward cross_entropy_backward;
MaskColumns mask_columns;
}  // namespace cuda

}  // namespace switchyard
