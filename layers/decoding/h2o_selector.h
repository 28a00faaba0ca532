#pragma once

#include "layers/decoding/ranking_selector.h"

namespace switchyard {

// Evicts keys for good: H2O (Zhang et al. 2023, arXiv 2306.14048, algorithm 1). Half of the budget
// are the newest keys, the other half those that have received most attention so far: from all
// queries of the prompt under full attention, then from each new query over the keys that are left.
// The paper also evicts while it reads the prompt; like its published code, this selector evicts
// from the first new token on.
class H2oSelector final : public RankingSelector {
 public:
  H2oSelector(const DecodeConfig& config, const KvCacheLayer& cache)
      : RankingSelector(config, cache),
        scores_({batch_, kv_heads_, max_len_}, DType::f32, device_) {}

  void append(Stream& stream, Workspace& workspace, ConstTensorView k,
              int64_t first_position) override;
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget) override;

 private:
  // Received attention per key, -infinity for evicted ones. [batch, kv_heads, max_len]
  Tensor scores_;
  int64_t left_ = 0;  // keys that are not evicted; 0: all of the prompt
};

}  // namespace switchyard
