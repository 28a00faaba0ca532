#include "layers/decoding/ranking_selector.h"

#include <span>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/decode/select_top_k.h"

namespace switchyard {

RankingSelector::RankingSelector(const DecodeConfig& config, const KvCacheLayer& cache)
    : config_(config),
      batch_(cache.shape()[0]),
      kv_heads_(cache.shape()[1]),
      max_len_(cache.shape()[2]),
      head_dim_(cache.shape()[3]),
      dtype_(cache.dtype()),
      device_(cache.device()) {}

ConstTensorView RankingSelector::counts_on_device(Stream& stream, Workspace& workspace,
                                                  const KeyBudget& count) {
  if (count.counts) return count.counts;
  const TensorView counts = workspace.take({batch_}, DType::i32);
  counts_.assign(static_cast<size_t>(batch_), static_cast<int32_t>(count.keys));
  copy(stream, view_of(std::span(std::as_const(counts_))), counts);
  return counts;
}

SelectedKeys RankingSelector::best(Stream& stream, Workspace& workspace, ConstTensorView scores,
                                   const CachedKeys& cache, const KeyBudget& count, int64_t sink,
                                   int64_t recent) {
  const SelectedKeys selected{
      .indices = workspace.take({batch_, kv_heads_, count.most}, DType::i32),
      .counts = counts_on_device(stream, workspace, count)};
  select_top_k(stream, workspace, scores, cache.lengths, selected.counts, sink, recent,
               selected.indices);
  return selected;
}

SelectedKeys RankingSelector::best(Stream& stream, Workspace& workspace, ConstTensorView scores,
                                   const CachedKeys& cache, const KeyBudget& count) {
  return best(stream, workspace, scores, cache, count, config_.sink, config_.recent);
}

TensorView RankingSelector::take_scores(Workspace& workspace) const {
  return workspace.take({batch_, kv_heads_, max_len_}, DType::f32);
}

}  // namespace switchyard
