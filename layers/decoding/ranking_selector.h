#pragma once

#include <cstdint>
#include <vector>

#include "layers/decoding/decode_config.h"
#include "layers/decoding/kv_cache.h"

namespace switchyard {

// The base of the methods that score every key and take the best: it knows the shape of the cache
// and makes the choice.
class RankingSelector : public KeySelector {
 protected:
  RankingSelector(const DecodeConfig& config, const KvCacheLayer& cache);

  // The `count` keys of greatest score (or least distance), the first `sink` and the newest
  // `recent` ones among them; of equal scores the most recent.
  //   scores  [batch, kv_heads, max_len] f32, or u16 distances
  SelectedKeys best(Stream& stream, Workspace& workspace, ConstTensorView scores,
                    const CachedKeys& cache, const KeyBudget& count, int64_t sink, int64_t recent);
  // The same, with `sink` and `recent` of the configuration.
  SelectedKeys best(Stream& stream, Workspace& workspace, ConstTensorView scores,
                    const CachedKeys& cache, const KeyBudget& count);

  // [batch, kv_heads, max_len] f32
  TensorView take_scores(Workspace& workspace) const;

  const DecodeConfig config_;
  const int64_t batch_, kv_heads_, max_len_, head_dim_;
  const DType dtype_;
  const Device device_;

 private:
  // [batch] i32 on the device.
  ConstTensorView counts_on_device(Stream& stream, Workspace& workspace, const KeyBudget& count);

  std::vector<int32_t> counts_;  // on the host, until the stream has copied them
};

}  // namespace switchyard
