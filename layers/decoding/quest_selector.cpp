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

int64_t QuestSelector::num_chosen(int64_t keys, int64_t length) const {
  const int64_t pages = std::max<int64_t>((keys + config_.page_size / 2) / config_.page_size, 1);
  return keys == length ? keys : std::min(pages * config_.page_size, length);
}

SelectedKeys QuestSelector::select(Stream& stream, Workspace& workspace, ConstTensorView q,
                                   ConstTensorView k, const CachedKeys& cache,
                                   const KeyBudget& budget) {
  update_page_bounds(stream, k, cache.newest_position(), config_.page_size, lower_, upper_);
  TensorView scores = take_scores(workspace);
  page_scores(stream, q, lower_, upper_, cache.lengths, config_.page_size, scores);
  const int64_t count = num_chosen(budget.keys, cache.length);
  return best(stream, workspace, scores, cache,
              {count, budget.counts, std::max(count, budget.most)});
}

}  // namespace switchyard
