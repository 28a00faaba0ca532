#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Decoding from a cache that is not on the device keeps the rows that a step needs in slots of
// smaller tensors there, which gather_attention reads in place of the cache.

// Finds the slots of chosen keys:
//   slots[b, h, i]    = j where held[b, h, j] is wanted[b, h, i], else missing_slot + i
//   missing[b, h, i]  = -1 where a slot holds the key, else wanted[b, h, i]
// and adds to figures[b, h] the number of wanted positions below `known` and of the missing ones
// among them.
//   held, wanted    [batch, kv_heads, any] i32: positions, rising for each head; held may be empty
//   slots, missing  as wanted
//   figures         [batch, kv_heads, 2] i32
using FindRows = void(Stream&, ConstTensorView held, ConstTensorView wanted, int64_t missing_slot,
                      int64_t known, TensorView slots, TensorView missing, TensorView figures);

// Copies listed rows of a cache in host memory:
//   near_k[b, h, first_slot + i] = far_k[b, h, positions[b, h, i]]   the same of v
// where positions[b, h, i] is in [0, length); other slots are not changed. On CUDA devices the far
// tensors are pinned host memory (PinnedBuffer), which the kernel reads itself, so the host need
// not know the positions.
//   far_k, far_v    [batch, kv_heads, max_len, head_dim]
//   positions       [batch, kv_heads, count] i32
//   near_k, near_v  [batch, kv_heads, num_slots, head_dim]   dtype of far_k
using FetchRows = void(Stream&, ConstTensorView far_k, ConstTensorView far_v,
                       ConstTensorView positions, int64_t length, int64_t first_slot,
                       TensorView near_k, TensorView near_v);

FindRows find_rows;
FetchRows fetch_rows;

namespace cpu {
FindRows find_rows;
FetchRows fetch_rows;
}  // namespace cpu
namespace cuda {
FindRows find_rows;
FetchRows fetch_rows;
}  // namespace cuda

}  // namespace switchyard
