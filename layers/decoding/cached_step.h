#pragma once

#include <cstdint>
#include <span>

#include "kernels/runtime/first_position.h"
#include "kernels/runtime/tensor.h"
#include "layers/decoding/kv_cache.h"

namespace switchyard {

// What changes from one decoding step to the next, in the device's memory, where a step that was
// recorded finds the values of its replay. A step reads one token per sequence.
struct CachedStep {
  int64_t position = 0;       // of the new tokens, when the step's work is put into the stream
  ConstTensorView positions;  // [batch] i32, all of them `position`
  ConstTensorView lengths;    // [batch] i32, all of them position + 1
  ConstTensorView counts;     // [layers, batch] i32: how many keys each layer's selector chooses
  // The lists of chosen keys get room for what is chosen of this many: position + 1, or more if the
  // step is recorded for later ones.
  int64_t longest = 0;

  FirstPosition first_position() const { return {position, positions}; }
  KeyBudget budget_of(int layer, const KvCacheLayer& cache) const;
};

// The three lists one after the other: how many values they have, and those of the step that reads
// the tokens at cache.length.
int64_t num_step_values(const KvCache& cache, int64_t batch);
void write_step_values(const KvCache& cache, int64_t batch, std::span<int32_t> values);
// That step.
//   values  [num_step_values] i32, on the device
CachedStep step_of(const KvCache& cache, int64_t batch, ConstTensorView values, int64_t longest);

}  // namespace switchyard
