#pragma once

#include <cstdint>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// The best cached keys of every (sequence, key/value head), exactly. Of equal ones the most recent
// win. The first `sink` and the last `recent` keys come before all others, the most recent of them
// first, and count among the chosen. NaN is worse than any number.
//   scores   [batch, kv_heads, max_len]: u16 distances, the smallest are best; or f32, the greatest
//   lengths  [batch] i32: cached positions, at least 1
//   counts   [batch] i32: how many to choose, 1 to min(lengths[b], max_selected)
//   indices  [batch, kv_heads, max_selected] i32: counts[b] positions, rising; what is behind them
//            stays as it is
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
