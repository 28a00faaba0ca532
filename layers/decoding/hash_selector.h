#pragma once

#include "layers/decoding/ranking_selector.h"

namespace switchyard {

// Keeps a code of sign bits per key, and chooses the keys whose codes have the least Hamming
// distance to the query's, summed over the group: HATA (Gong et al. 2025, arXiv 2506.02572). With
// key_norm it ranks keys by the estimated cosine times the key's length instead, as the published
// code's scripts did.
class HashSelector final : public RankingSelector {
 public:
  //   weight  [kv_heads, head_dim, bits] f32, learned or random; must outlive the object
  HashSelector(const DecodeConfig& config, ConstTensorView weight, const KvCacheLayer& cache);

  void append(Stream& stream, Workspace& workspace, ConstTensorView k,
              int64_t first_position) override;
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, int64_t budget) override;

 private:
  TensorView norms() { return norms_ ? norms_.view() : TensorView(); }

  ConstTensorView weight_;
  int64_t words_;  // of a code
  Tensor codes_;   // [batch, kv_heads, max_len, words]
  Tensor norms_;   // [batch, kv_heads, max_len] of the keys; only with key_norm
};

}  // namespace switchyard
