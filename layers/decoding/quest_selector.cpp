#include "layers/decoding/quest_selector.h"

#include <algorithm>

#include "kernels/decode/page_bounds.h"

namespace switchyard {

QuestSelector::QuestSelector(const DecodeConfig& config, const KvCacheLayer& cache)
    : RankingSelector(config, cache) {
  const int64_t pages = (max_len_ + config.page_size - 1) / config.page_size;
  lower_ = Tensor({batch_, kv_heads_, pages, head_dim_}, dtype_, device_);
  upper_ = Tensor({batch_, kv_heads_, pages, head_dim_}, dtype_, device_);
}

void QuestSelector::append(Stream& stream, Workspace&, ConstTensorView k, int64_t first_position) {
  update_page_bounds(stream, k, first_position, config_.page_size, lower_, upper_);
}

SelectedKeys QuestSelector::select(Stream& stream, Workspace& workspace, ConstTensorView q,
                                   ConstTensorView k, const CachedKeys& cache, int64_t budget) {
  append(stream, workspace, k, cache.length - 1);
  TensorView scores = take_scores(workspace);
  page_scores(stream, q, lower_, upper_, cache.lengths, config_.page_size, scores);
  // The budget is rounded to the nearest number of pages, at least one. Rounding down would lose a
  // page where the budget is a share of a length just short of whole pages.
  const int64_t pages = std::max<int64_t>((budget + config_.page_size / 2) / config_.page_size, 1);
  const int64_t count =
      budget == cache.length ? budget : std::min(pages * config_.page_size, cache.length);
  return best(stream, workspace, scores, cache, count);
}

}  // namespace switchyard
