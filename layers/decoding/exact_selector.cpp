#include "layers/decoding/exact_selector.h"

#include "kernels/decode/key_scores.h"

namespace switchyard {

SelectedKeys ExactSelector::select(Stream& stream, Workspace& workspace, ConstTensorView q,
                                   ConstTensorView, const CachedKeys& cache,
                                   const KeyBudget& budget) {
  TensorView scores = take_scores(workspace);
  key_scores(stream, q, cache.k, cache.lengths, scores);
  return best(stream, workspace, scores, cache, budget);
}

}  // namespace switchyard
