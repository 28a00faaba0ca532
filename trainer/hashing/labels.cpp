#include "trainer/hashing/labels.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/runtime/check.h"

namespace switchyard {

void label_keys(std::span<const float> scores, const HashTrainingConfig& config,
                std::span<float> labels) {
  require(!scores.empty() && labels.size() == scores.size(), "{} labels for {} scores",
          labels.size(), scores.size());
  const auto count = static_cast<int64_t>(scores.size());
  const auto share = static_cast<int64_t>(config.positive_share * static_cast<double>(count));
  const int64_t positives = std::clamp<int64_t>(share, 1, count);
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + positives, order.end(),
                    [&](int32_t a, int32_t b) {
                      const float score_a = scores[static_cast<size_t>(a)];
                      const float score_b = scores[static_cast<size_t>(b)];
                      return score_a != score_b ? score_a > score_b : a < b;
                    });
  std::ranges::fill(labels, static_cast<float>(config.negative_label));
  const double step =
      positives > 1 ? (config.top_label - config.last_label) / static_cast<double>(positives - 1)
                    : 0.0;
  for (int64_t rank = 0; rank < positives; ++rank) {
    labels[static_cast<size_t>(order[static_cast<size_t>(rank)])] =
        static_cast<float>(config.top_label - step * static_cast<double>(rank));
  }
}

}  // namespace switchyard
