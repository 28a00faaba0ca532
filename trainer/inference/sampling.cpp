#include "trainer/inference/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/runtime/check.h"

namespace switchyard {

int32_t sample_token(std::span<const float> logits, const SamplingOptions& options,
                     double uniform) {
  require(!logits.empty(), "there are no logits to sample from");
  const auto likeliest = std::max_element(logits.begin(), logits.end());
  if (options.temperature <= 0.0) return static_cast<int32_t>(likeliest - logits.begin());

  std::vector<double> probs(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    probs[i] = std::exp((static_cast<double>(logits[i]) - *likeliest) / options.temperature);
  }
  const double total = std::accumulate(probs.begin(), probs.end(), 0.0);

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return probs[static_cast<size_t>(a)] > probs[static_cast<size_t>(b)];
  });
  double kept = 0.0;
  size_t count = 0;
  while (count < order.size() && (count == 0 || kept < options.top_p * total)) {
    kept += probs[static_cast<size_t>(order[count++])];
  }

  double rest = uniform * kept;
  for (size_t i = 0; i + 1 < count; ++i) {
    rest -= probs[static_cast<size_t>(order[i])];
    if (rest < 0.0) return order[i];
  }
  return order[count - 1];
}

}  // namespace switchyard
