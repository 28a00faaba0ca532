#include "layers/step_context.h"

#include <algorithm>

namespace switchyard {

LossScales GlobalBatchSize::loss_scales() const {
  const auto inverse = [](int64_t n) { return 1.0f / static_cast<float>(std::max<int64_t>(n, 1)); };
  return {.per_target = inverse(targets), .per_token = inverse(tokens)};
}

}  // namespace switchyard
