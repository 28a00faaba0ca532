#pragma once

#include <cstdint>
#include <memory>

#include "kernels/runtime/memory.h"
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
  // The tensors that are there, one after the other, in memory that a device reads by itself; null
  // unless `pin` was called.
  std::shared_ptr<PinnedBuffer> pinned = nullptr;
};

// The bytes of `pinned` of a batch with all three tensors.
size_t pinned_bytes(int64_t num_sequences, int64_t seq_len);
// Copies the tensors into `memory`, of pinned_bytes bytes, which becomes `batch.pinned`.
void pin(MicroBatch& batch, std::shared_ptr<PinnedBuffer> memory);

// Copies `batch` (from pinned memory if it is there) to the device of `stream`; `copied` keeps its
// memory from one batch to the next of the same shape. `batch` must not change until the
// stream has finished the copy.
void copy_to_device(Stream& stream, const MicroBatch& batch, MicroBatch& copied);

}  // namespace switchyard
