#include "layers/decoding/h2o_selector.h"

#include <algorithm>
#include <cmath>

#include "kernels/basic/elementwise.h"
#include "kernels/decode/received_attention.h"

namespace switchyard {

void H2oSelector::append(Stream&, Workspace&, ConstTensorView, int64_t first_position) {
  if (first_position == 0) left_ = 0;
}

SelectedKeys H2oSelector::select(Stream& stream, Workspace& workspace, ConstTensorView q,
                                 ConstTensorView, const CachedKeys& cache,
                                 const KeyBudget& budget) {
  if (left_ == 0) {
    copy(stream, cache.received(kAllQueries), scores_);
    left_ = cache.length - 1;
  }
  left_ = std::min(budget.keys, left_ + 1);
  const int64_t newest = (left_ + 1) / 2;
  const SelectedKeys kept = best(stream, workspace, scores_, cache, left_, config_.sink,
                                 std::max(config_.recent, newest));
  evict_and_score(stream, workspace, q, cache.k, kept.indices, kept.counts, cache.lengths,
                  1.0f / std::sqrt(static_cast<float>(head_dim_)), scores_);
  return kept;
}

}  // namespace switchyard
