#include "layers/decoding/hash_selector.h"

#include "kernels/decode/hamming_scores.h"
#include "kernels/decode/hash_encode.h"
#include "kernels/runtime/check.h"

namespace switchyard {

HashSelector::HashSelector(const DecodeConfig& config, const HashProjection& hash,
                           const KvCacheLayer& cache)
    : RankingSelector(config, cache),
      hash_(hash),
      words_(hash.columns() / 32),
      codes_({batch_, kv_heads_, max_len_, hash.bits() / 32}, DType::i32, device_) {
  require(hash.keys.dim(0) == kv_heads_ && hash.keys.dim(1) == head_dim_,
          "hash projections have the shape {}, the cache has {} heads of {}", hash.keys.shape(),
          kv_heads_, head_dim_);
  if (config.key_norm || hash.query_codes() == QueryCodes::planes)
    norms_ = Tensor({batch_, kv_heads_, max_len_}, DType::f32, device_);
}

void HashSelector::append(Stream& stream, Workspace&, ConstTensorView k, int64_t first_position) {
  hash_encode(stream, {}, k, hash_, first_position, {}, codes_, norms());
}

SelectedKeys HashSelector::select(Stream& stream, Workspace& workspace, ConstTensorView q,
                                  ConstTensorView k, const CachedKeys& cache,
                                  const KeyBudget& budget) {
  return choose(stream, workspace, q, k, cache, budget);
}

SelectedKeys HashSelector::predict(Stream& stream, Workspace& workspace, ConstTensorView q,
                                   const CachedKeys& cache, const KeyBudget& budget) {
  return choose(stream, workspace, q, {}, cache, budget);
}

SelectedKeys HashSelector::choose(Stream& stream, Workspace& workspace, ConstTensorView q,
                                  ConstTensorView k, const CachedKeys& cache,
                                  const KeyBudget& budget) {
  const int64_t heads = q.dim(1), group = heads / kv_heads_;
  const QueryCodes kind = hash_.query_codes();
  const int64_t num_codes = kv_heads_ * num_query_codes(kind, group);
  TensorView q_codes = workspace.take({batch_, num_codes, words_}, DType::i32);
  hash_encode(stream, q.reshape({batch_, heads, 1, head_dim_}), k, hash_, cache.newest_position(),
              q_codes.reshape({batch_, num_codes, 1, words_}), codes_, norms());
  TensorView distances = workspace.take({batch_, kv_heads_, max_len_}, DType::u16);
  hamming_scores(stream, q_codes, kind, codes_, cache.lengths, distances);
  if (!norms_) return best(stream, workspace, distances, cache, budget);
  TensorView scores = take_scores(workspace);
  const int64_t weight = weight_of_codes(kind, group, hash_.key_planes);
  key_norm_scores(stream, distances, norms_, cache.lengths, weight, hash_.columns(), scores);
  return best(stream, workspace, scores, cache, budget);
}

}  // namespace switchyard
