#pragma once

#include "layers/decoding/ranking_selector.h"

namespace switchyard {

// Chooses once, at the end of the prompt: SnapKV (Li et al. 2024, arXiv 2404.14469, section 4). The
// prompt's last `window` queries vote for the keys before them by the attention that they pay; a
// key's votes are the most in the `kernel` positions around it. The keys of most votes stay, beside
// the window's own. The budget is that of the first new token, whose key it includes; the keys of
// later tokens stay in addition.
class SnapKvSelector final : public RankingSelector {
 public:
  SnapKvSelector(const DecodeConfig& config, const KvCacheLayer& cache)
      : RankingSelector(config, cache),
        votes_({batch_, kv_heads_, max_len_}, DType::f32, device_) {}

  void append(Stream& stream, Workspace& workspace, ConstTensorView k,
              int64_t first_position) override;
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget) override;

 private:
  void count_votes(Stream& stream, const CachedKeys& cache);

  Tensor votes_;  // [batch, kv_heads, max_len], pooled
  int64_t prompt_len_ = 0;
  int64_t kept_ = 0;  // the budget; 0: before the first new token
};

}  // namespace switchyard
