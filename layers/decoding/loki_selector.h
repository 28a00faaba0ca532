#pragma once

#include "layers/decoding/ranking_selector.h"

namespace switchyard {

// Chooses the keys of greatest <q, k> along the leading principal axes of the keys: Loki (Singhania
// et al. 2024, arXiv 2406.02542, algorithm 1). The axes are those of the first keys that are
// appended, the prompt's own, per sequence and key/value head; the paper takes them from another
// text, which can only make them worse.
class LokiSelector final : public RankingSelector {
 public:
  LokiSelector(const DecodeConfig& config, const KvCacheLayer& cache);

  void append(Stream& stream, Workspace& workspace, ConstTensorView k,
              int64_t first_position) override;
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache, const KeyBudget& budget) override;
  bool is_recordable() const override { return true; }

 private:
  // What `append` does, at a position that may also be on the device.
  void add_keys(Stream& stream, Workspace& workspace, ConstTensorView k,
                const FirstPosition& first_position);
  //   k  [batch, kv_heads, seq_len, head_dim]
  void fit(Stream& stream, ConstTensorView k);
  //   x       [batch, kv_heads, rows, head_dim]
  //   result  [batch, kv_heads, rows, channels]
  TensorView along_axes(Stream& stream, Workspace& workspace, ConstTensorView x) const;

  int64_t channels_;
  Tensor axes_;  // [batch * kv_heads, head_dim, channels]
  Tensor keys_;  // [batch, kv_heads, max_len, channels]
};

}  // namespace switchyard
