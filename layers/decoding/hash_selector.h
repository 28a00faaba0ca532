#pragma once

#include "kernels/decode/hash_encode.h"
#include "layers/decoding/ranking_selector.h"

namespace switchyard {

// Keeps a code of bits per key, and chooses keys by their codes (HashProjection). With signs these
// are the keys of least Hamming distance to the queries' codes, summed over the group: HATA (Gong
// et al. 2025, arXiv 2506.02572); with key_norm it ranks keys by the estimated cosine times the
// key's length instead, as the published code's scripts did. With planes it keeps the length of
// each key's code, too, and chooses the keys of greatest estimated score.
class HashSelector final : public RankingSelector {
 public:
  // The projection's tensors must outlive the object.
  HashSelector(const DecodeConfig& config, const HashProjection& hash, const KvCacheLayer& cache);

  void append(Stream& stream, Workspace& workspace, ConstTensorView k,
              int64_t first_position) override;
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget) override;
  SelectedKeys predict(Stream& stream, Workspace& workspace, ConstTensorView q,
                       const CachedKeys& cache, const KeyBudget& budget) override;
  bool is_recordable() const override { return true; }

 private:
  // k may be empty.
  SelectedKeys choose(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget);
  TensorView norms() { return norms_ ? norms_.view() : TensorView(); }

  HashProjection hash_;
  int64_t words_;  // of a plane
  Tensor codes_;   // [batch, kv_heads, max_len, words of all planes]
  Tensor norms_;   // [batch, kv_heads, max_len] of the keys; only with key_norm or planes
};

}  // namespace switchyard
