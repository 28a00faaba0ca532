#pragma once

#include <cstdint>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Chooses exactly the best cached keys of every (sequence, key/value head). Ties go to the most
// recent key. The first `sink` and the last `recent` keys are chosen before all others, starting
// with the most recent, and are part of the count. NaN is worse than any number.
//   scores   [batch, kv_heads, max_len]: u16 distances, the smallest are best; or f32, the greatest
//   lengths  [batch] i32: cached positions, at least 1
//   counts   [batch] i32: how many to choose, 1 to min(lengths[b], max_selected)
//   indices  [batch, kv_heads, max_selected] i32: counts[b] positions in ascending order; later
//            entries are not changed
using SelectTopK = void(Stream&, Workspace&, ConstTensorView scores, ConstTensorView lengths,
                        ConstTensorView counts, int64_t sink, int64_t recent, TensorView indices);

SelectTopK select_top_k;

namespace cpu {
SelectTopK select_top_k;
}  // namespace cpu
namespace cuda {
SelectTopK select_top_k;
}  // namespace cuda

}  // namespace switchyard
