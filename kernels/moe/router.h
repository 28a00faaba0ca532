#pragma once

#include <numeric>

#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

enum class RouterScore { softmax, sigmoid };
SWITCHYARD_ENUM_NAMES(RouterScore, softmax, sigmoid)

enum class DropPolicy { lowest_weight, latest_position };
SWITCHYARD_ENUM_NAMES(DropPolicy, lowest_weight, latest_position)

struct RouterOptions {
  RouterScore score = RouterScore::softmax;
  int top_k = 1;
  // The experts are num_groups groups of neighbours, and a token's come from its best
  // groups_per_token. A group's score is the sum of its two greatest values of score + bias with
  // sigmoid (DeepSeek-V3, section 2.1.2), and the greatest with softmax (DeepSeek-V2, section
  // 2.2.2). Ties go to the lower group.
  int num_groups = 1;
  int groups_per_token = 1;
  bool normalize_topk = false;
  float routed_scaling_factor = 1.0f;
  // Benchmarks only: slot s of token t gets expert (t * top_k + s) * stride mod num_experts, where
  // stride is balanced_stride(num_experts) and t counts from the first token of the micro-batch;
  // the weights are these experts' true scores.
  bool force_balanced = false;
};

// A number without a common divisor with `experts`, near 0.618 times it: its multiples visit every
// expert in turn, and neighbouring ones lie far apart, so that the experts of a token, and of few
// tokens, are spread over the ranks of every layout.
constexpr int balanced_stride(int64_t experts) {
  int64_t stride = experts * 618 / 1000;
  while (std::gcd(stride, experts) != 1) ++stride;
  return static_cast<int>(stride);
}

// How many of a group's values its score adds up.
constexpr int group_score_terms(RouterScore score) { return score == RouterScore::sigmoid ? 2 : 1; }

// The tokens of one rank: consecutive tokens of a micro-batch of whole sequences, which sequence
// parallelism may cut anywhere. Token t belongs to sequence (first_token + t) / seq_len.
struct TokenRange {
  int64_t first_token = 0;
  int64_t seq_len = 1;
};

// score -> top k of (score + bias); ties go to the lower index; slots in descending order.
// topk_weights are the unbiased scores, divided by their sum if normalize_topk (plus 1e-20), times
// routed_scaling_factor. k up to the number of experts of a token's groups; on CUDA k up to 32 of
// at most 512 experts in at most 32 groups.
//   logits        [tokens, experts] f32
//   bias          [experts] f32 (loss-free balancing, Wang et al. 2024); may be empty
//   scores        [tokens, experts] f32: softmax or sigmoid of the logits
//   lse           [tokens] f32: log of the sum of exp(logit), for the z-loss and its gradient
//   topk_idx      [tokens, top_k] i32
//   topk_weights  [tokens, top_k] f32
// Statistics for the balance loss, from the same pass; both may be empty. The probability of an
// expert is its score (softmax), or its score divided by the sum over experts (sigmoid;
// DeepSeek-V3, eq. 18).
//   counts        [sequences, experts] f32: assignments of this rank's tokens, before any drop
//   prob_sums     [sequences, experts] f32: probabilities summed over this rank's tokens
using RouterForward = void(Stream&, Workspace&, const RouterOptions&, TokenRange,
                           ConstTensorView logits, ConstTensorView bias, TensorView scores,
                           TensorView lse, TensorView topk_idx, TensorView topk_weights,
                           TensorView counts, TensorView prob_sums);

// Gradient of the logits from the top-k weights, the balance loss and the z-loss.
//   dtopk_weights  [tokens, top_k] f32
//   dprobs         [sequences, experts] f32: gradient of the balance loss by the probability of any
//                  token of the sequence; may be empty
//   z_loss_scale   the gradient of the loss by lse^2 of a token
//   dlogits        [tokens, experts] f32; overwritten
using RouterBackward = void(Stream&, const RouterOptions&, TokenRange, ConstTensorView logits,
                            ConstTensorView scores, ConstTensorView lse, ConstTensorView topk_idx,
                            ConstTensorView dtopk_weights, ConstTensorView dprobs,
                            float z_loss_scale, TensorView dlogits);

// Keeps at most `capacity` assignments per (sequence, expert): those of the greatest weight (ties:
// the earlier position) or of the earliest position. The limit is per sequence, so that the outcome
// is the same on every layout; the tensors must hold all tokens of the micro-batch.
//   topk_idx      [tokens, top_k] i32, tokens = whole sequences
//   topk_weights  [tokens, top_k] f32
//   dispatch_idx  [tokens, top_k] i32: topk_idx, or -1 where dropped
//   dropped       [1] f64: the number of dropped assignments is added to it
using DropOverCapacity = void(Stream&, Workspace&, DropPolicy, int64_t capacity, int64_t seq_len,
                              int64_t num_experts, ConstTensorView topk_idx,
                              ConstTensorView topk_weights, TensorView dispatch_idx,
                              TensorView dropped);

RouterForward router_forward;
RouterBackward router_backward;
DropOverCapacity drop_over_capacity;

namespace cpu {
RouterForward router_forward;
RouterBackward router_backward;
DropOverCapacity drop_over_capacity;
}  // namespace cpu
namespace cuda {
RouterForward router_forward;
RouterBackward router_backward;
DropOverCapacity drop_over_capacity;
}  // namespace cuda

}  // namespace switchyard
