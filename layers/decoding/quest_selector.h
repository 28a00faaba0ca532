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
  // The budget is rounded to the nearest number of pages, at least one. Rounding down would lose a
  // page where the budget is a share of a length just short of whole pages.
  int64_t num_chosen(int64_t keys, int64_t length) const override;
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget) override;
  bool is_recordable() const override { return true; }

 private:
  Tensor lower_, upper_;  // [batch, kv_heads, pages, head_dim]
};

}  // namespace switchyard
