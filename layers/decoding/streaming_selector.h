#pragma once

#include "layers/decoding/ranking_selector.h"

namespace switchyard {

// Chooses the first keys and the newest ones: StreamingLLM (Xiao et al. 2024, arXiv 2309.17453,
// section 3.2). The paper counts positions within its cache; here keys keep their positions in the
// text, as in all methods.
class StreamingSelector final : public RankingSelector {
 public:
  StreamingSelector(const DecodeConfig& config, const KvCacheLayer& cache)
      : RankingSelector(config, cache) {}

  void append(Stream&, Workspace&, ConstTensorView, int64_t) override {}
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget) override;
  bool is_recordable() const override { return true; }
};

}  // namespace switchyard
