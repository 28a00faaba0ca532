#include "layers/decoding/streaming_selector.h"

#include "kernels/basic/elementwise.h"

namespace switchyard {

SelectedKeys StreamingSelector::select(Stream& stream, Workspace& workspace, ConstTensorView,
                                       ConstTensorView, const CachedKeys& cache,
                                       const KeyBudget& budget) {
  TensorView scores = take_scores(workspace);
  fill_zero(stream, scores);  // of equal scores the most recent ones win
  return best(stream, workspace, scores, cache, budget, config_.streaming_sink, /*recent=*/0);
}

}  // namespace switchyard
