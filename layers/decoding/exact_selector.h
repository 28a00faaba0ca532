#pragma once

#include "layers/decoding/ranking_selector.h"

namespace switchyard {

// Chooses the keys of greatest <q, k>, summed over the group, which the other methods estimate. It
// reads every key.
class ExactSelector final : public RankingSelector {
 public:
  ExactSelector(const DecodeConfig& config, const KvCacheLayer& cache)
      : RankingSelector(config, cache) {}

  void append(Stream&, Workspace&, ConstTensorView, int64_t) override {}
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget) override;
  bool is_recordable() const override { return true; }
};

}  // namespace switchyard
