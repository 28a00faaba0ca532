#include "kernels/moe/balance_loss.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 512;

// One block is enough, because sequences x experts is small.
//   shared  one row of counts for all sequences
__global__ void __launch_bounds__(kThreads)
    balance_loss_kernel(const float* counts, bool shared, double assignments,
                        const float* prob_sums, int64_t sequences, int64_t experts,
                        double token_weight, double coef, float* dprobs, double* loss) {
  __shared__ double scratch[kWarpSize];
  double total = 0.0;
  for (int64_t i = threadIdx.x; i < sequences * experts; i += kThreads) {
    const double count = counts[shared ? i % experts : i];
    const double by_prob = experts * (count / assignments) * token_weight;
    total += by_prob * prob_sums[i];
    dprobs[i] = static_cast<float>(coef * by_prob);
  }
  total = block_sum(total, scratch);
  if (threadIdx.x == 0) *loss += total;
}

// One block is enough for the experts of a layer. Counts are whole numbers, so their sum is exact
// in any order.
__global__ void __launch_bounds__(kThreads)
    move_balancing_bias_kernel(const double* counts, int64_t experts, double rate, float* bias) {
  __shared__ double scratch[kWarpSize];
  double total = 0.0;
  for (int64_t e = threadIdx.x; e < experts; e += kThreads) total += counts[e];
  const double mean = block_sum(total, scratch) / static_cast<double>(experts);
  for (int64_t e = threadIdx.x; e < experts; e += kThreads) {
    const double gap = mean - counts[e];
    const double sign = (gap > 0.0) - (gap < 0.0);
    bias[e] += static_cast<float>(rate * sign);
  }
}

}  // namespace

void cuda::balance_loss(Stream& stream, ConstTensorView counts, double assignments,
                        ConstTensorView prob_sums, double token_weight, double coef,
                        TensorView dprobs, TensorView loss) {
  launch(balance_loss_kernel, 1, kThreads, 0, stream, counts.data<float>(),
         counts.dim(0) == 1 && prob_sums.dim(0) != 1, assignments, prob_sums.data<float>(),
         prob_sums.dim(0), prob_sums.dim(1), token_weight, coef, dprobs.data<float>(),
         loss.data<double>());
}

void cuda::move_balancing_bias(Stream& stream, ConstTensorView counts, double rate,
                               TensorView bias) {
  launch(move_balancing_bias_kernel, 1, kThreads, 0, stream, counts.data<double>(),
         counts.num_elements(), rate, bias.data<float>());
}

}  // namespace switchyard
