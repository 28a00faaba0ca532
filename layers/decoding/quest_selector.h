#pragma once

#include "layers/decoding/ranking_selector.h"

namespace switchyard {

// Chooses pages of keys by an upper bound of <q, k> in each, computed from the least and greatest
// value of every channel: Quest (Tang et al. 2024, arXiv 2406.10774, algorithm 1). Every key gets
// the bound of its page, so that whole pages are chosen; where the newest page is among them and
// not full, keys of the next best one fill the budget.
class QuestSelector final : public RankingSelector {
 public:
  QuestSelector(const DecodeConfig& config, const KvCacheLayer& cache);

  void append(Stream& stream, Workspace& workspace, ConstTensorView k,
              int64_t first_position) override;
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, int64_t budget) override;

 private:
  Tensor lower_, upper_;  // [batch, kv_heads, pages, head_dim]
};

}  // namespace switchyard
