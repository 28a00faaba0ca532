#pragma once

#include "kernels/decode/hash_encode.h"
#include "layers/decoding/ranking_selector.h"

namespace switchyard {

// Samples keys by locality-sensitive hashing and corrects their weights: MagicPIG (Chen et al.
// 2024, arXiv 2410.16179, algorithm 1). The prompt's keys except the first `magicpig_sink` and the
// last `magicpig_local` are centred by their mean and hashed. Each query head attends to those of
// them that share its bucket in two tables, with the log of their probability subtracted, and to
// all other keys. The sampling says how many that are, not the budget.
class MagicPigSelector final : public RankingSelector {
 public:
  //   seed  of the hash functions, which all heads and layers share, as in the published code
  MagicPigSelector(const DecodeConfig& config, uint64_t seed, const KvCacheLayer& cache);

  void append(Stream& stream, Workspace& workspace, ConstTensorView k,
              int64_t first_position) override;
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget) override;

 private:
  HashProjection signs() const { return {.keys = projection_, .queries = {}, .thresholds = {}}; }

  //   k  [batch, kv_heads, seq_len, head_dim], the prompt's
  void hash_prompt(Stream& stream, Workspace& workspace, ConstTensorView k);

  int64_t words_;                // of a code; a table takes half a word
  int64_t begin_ = 0, end_ = 0;  // positions of the hashed keys
  Tensor projection_;            // [kv_heads, head_dim, 32 words]
  Tensor codes_;                 // [batch, kv_heads, max_len, words]
  Tensor mean_;                  // [batch, kv_heads, head_dim] of the hashed keys
};

}  // namespace switchyard
