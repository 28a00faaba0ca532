#include "kernels/moe/balance_loss.h"

#include <numeric>
#include <span>

#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void balance_loss(Stream& stream, ConstTensorView counts, double assignments,
                  ConstTensorView prob_sums, double token_weight, double coef, TensorView dprobs,
                  TensorView loss) {
  require(counts.rank() == 2 && prob_sums.rank() == 2 && counts.dim(1) == prob_sums.dim(1) &&
              (counts.dim(0) == 1 || counts.dim(0) == prob_sums.dim(0)),
          "balance_loss: counts {} do not fit prob_sums {}", counts.shape(), prob_sums.shape());
  require(assignments > 0.0, "balance_loss needs at least one assignment");
  require_shape(dprobs, prob_sums.shape(), "dprobs");
  require_dtype(counts, DType::f32, "counts");
  require_dtype(prob_sums, DType::f32, "prob_sums");
  require_dtype(dprobs, DType::f32, "dprobs");
  require_shape(loss, {1}, "loss");
  require_dtype(loss, DType::f64, "loss");
  SWITCHYARD_BODY(stream, balance_loss)
  (stream, counts, assignments, prob_sums, token_weight, coef, dprobs, loss);
}

void move_balancing_bias(Stream& stream, ConstTensorView counts, double rate, TensorView bias) {
  require_shape(counts, bias.shape(), "counts");
  require_dtype(counts, DType::f64, "counts");
  require_dtype(bias, DType::f32, "bias");
  SWITCHYARD_BODY(stream, move_balancing_bias)(stream, counts, rate, bias);
}

namespace cpu {

void balance_loss(Stream&, ConstTensorView counts, double assignments, ConstTensorView prob_sums,
                  double token_weight, double coef, TensorView dprobs, TensorView loss) {
  const int64_t sequences = prob_sums.dim(0), experts = prob_sums.dim(1);
  const bool shared = counts.dim(0) == 1;
  double total = 0.0;
  for (int64_t s = 0; s < sequences; ++s) {
    const float* count = counts.data<float>() + (shared ? 0 : s * experts);
    const float* prob_sum = prob_sums.data<float>() + s * experts;
    float* dprob = dprobs.data<float>() + s * experts;
    for (int64_t e = 0; e < experts; ++e) {
      const double by_prob = experts * (count[e] / assignments) * token_weight;
      total += by_prob * prob_sum[e];
      dprob[e] = static_cast<float>(coef * by_prob);
    }
  }
  loss.data<double>()[0] += total;
}

void move_balancing_bias(Stream&, ConstTensorView counts, double rate, TensorView bias) {
  const std::span<const double> of_experts(counts.data<double>(),
                                           static_cast<size_t>(counts.num_elements()));
  const double total = std::accumulate(of_experts.begin(), of_experts.end(), 0.0);
  const double mean = total / static_cast<double>(of_experts.size());
  for (size_t e = 0; e < of_experts.size(); ++e) {
    const double gap = mean - of_experts[e];
    const double sign = (gap > 0.0) - (gap < 0.0);
    bias.data<float>()[e] += static_cast<float>(rate * sign);
  }
}

}  // namespace cpu
}  // namespace switchyard
