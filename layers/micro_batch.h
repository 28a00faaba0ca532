#pragma once

#include <cstdint>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// The sequences of one forward and backward pass on one dp rank. All its tp ranks hold the same.
struct MicroBatch {
  int64_t num_sequences = 0;
  int64_t seq_len = 0;
  Tensor tokens;   // [num_sequences, seq_len] i32
  Tensor targets;  // [num_sequences, seq_len] i32: the next token; -1: not counted
  // [num_sequences, seq_len] i32, see AttentionForward; empty: causal mask
  Tensor document_start;
};

// Copies `batch` to the device of `stream`; `copied` keeps its memory from one batch to the next of
// the same shape. `batch` must not change until the stream has finished the copy.
void copy_to_device(Stream& stream, const MicroBatch& batch, MicroBatch& copied);

}  // namespace switchyard
