#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Load-balance loss (Fedus et al. 2021, eq. 4) and its gradient by the router's probabilities:
//   loss = E * sum_e f_e * P_e, exactly 1.0 when perfectly balanced; f_e is the share of the
//   assignments that went to expert e, P_e the mean probability of expert e.
// f is a count and has no gradient. For a given f the loss is linear in the probabilities, so every
// rank adds the contribution of its own tokens.
//   counts        [sequences, experts] f32: assignments of whole sequences; or [1, experts]: of the
//                 whole batch, with the same f for every sequence
//   assignments   the sum of a row of counts
//   prob_sums     [sequences, experts] f32: probabilities summed over this rank's tokens
//   token_weight  1 / tokens in the global batch
//   coef          factor of the loss in the total
//   dprobs        [sequences, experts] f32: coef * d loss / d (probability of any token of the
//                 sequence)
//   loss          [1] f64: this rank's contribution to the loss, without coef, is added to it
using BalanceLoss = void(Stream&, ConstTensorView counts, double assignments,
                         ConstTensorView prob_sums, double token_weight, double coef,
                         TensorView dprobs, TensorView loss);

// Loss-free balancing (Wang et al. 2024, algorithm 1): moves each expert's bias by `rate` towards
// the mean load, up where its count is below the mean, down where it is above.
//   counts  [experts] f64, whole numbers: assignments in the whole global batch
//   bias    [experts] f32  +=
using MoveBalancingBias = void(Stream&, ConstTensorView counts, double rate, TensorView bias);

BalanceLoss balance_loss;
MoveBalancingBias move_balancing_bias;

namespace cpu {
BalanceLoss balance_loss;
MoveBalancingBias move_balancing_bias;
}  // namespace cpu
namespace cuda {
BalanceLoss balance_loss;
MoveBalancingBias move_balancing_bias;
}  // namespace cuda

}  // namespace switchyard
