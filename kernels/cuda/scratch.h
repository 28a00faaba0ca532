#pragma once

// Scratch that the bodies of CUDA ops take from a workspace. The bodies call these functions, and
// so do ops on a device that only counts, also in builds without CUDA. The functions do not release
// the scratch; the caller's WorkspaceScope does.

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/moe/router.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cuda {

// Bytes that CUB gets; it gets more if it asks for more. They are upper bounds of what its kernels
// for compute capability 8.0 and newer ask for.
// stable_sort_pairs with keys of key_bytes bytes
size_t sort_scratch_bytes(int64_t n, int64_t max_key, size_t key_bytes = sizeof(int32_t));
size_t scan_scratch_bytes(int64_t n);  // running_sums

//   [batch * heads * seq_len] f32
TensorView attention_backward_scratch(Workspace&, ConstTensorView q);
// Count the scratch of attention by the method of the process. Where none is set, as in a plan,
// that of the method with more, because a run may choose either.
void count_attention_forward(Workspace&, ConstTensorView q, ConstTensorView document_start);
void count_attention_backward(Workspace&, ConstTensorView q, ConstTensorView k,
                              ConstTensorView document_start);

//   [batch, heads, splits, head_dim + 2] f32
TensorView attend_cached_scratch(Workspace&, ConstTensorView q, ConstTensorView k_cache,
                                 ConstTensorView positions);
// Keys of one block. It is smaller for lists: they are short, and their blocks must still fill the
// device.
constexpr int64_t kKeysPerSplit = 256, kListedKeysPerSplit = 64;

// Counts of keys by a byte: an H200 needs about this many blocks per row for rows of few heads and
// sequences, and each block adds up the counts of all others of its row.
constexpr int64_t kSelectionTile = 2048, kSelectionBins = 256, kMaxSelectionSplits = 64;
constexpr int64_t kSelectionOfOneBlock = 2 * kSelectionTile;  // keys of a row
//   [batch * kv_heads, bytes of a score, splits, kSelectionBins] i32
TensorView select_top_k_scratch(Workspace&, ConstTensorView scores);

// Whether the backward kernels of norms may use 16-byte accesses.
bool norm_backward_vectors(ConstTensorView dy, ConstTensorView x, ConstTensorView weight,
                           ConstTensorView dx);
// For rms_norm_backward (columns: hidden) and layer_norm_backward (2 hidden): a row of sums for
// each of the kernel's blocks.
//   [blocks, columns] f32
TensorView norm_backward_scratch(Workspace&, Device, ConstTensorView x, bool vectors,
                                 int64_t columns);

constexpr int64_t kProjectionNormTokens = 256;  // of a block
//   [blocks, columns] f32
TensorView projection_norm_scratch(Workspace&, int64_t tokens, int64_t columns);

constexpr int64_t kBiasGradientRows = 256;  // of a block
//   [blocks, width] f32
TensorView add_bias_backward_scratch(Workspace&, ConstTensorView dy);

constexpr int64_t kRouterTokensPerChunk = 32;  // of a block; all from one sequence
// Taken only if the router counts assignments.
//   counts  [sequences, experts]
//   [sequences, chunks, 2, experts] f64
TensorView router_forward_scratch(Workspace&, int64_t seq_len, ConstTensorView counts);

// Pairs, and the same pairs sorted by key; all [n], i32 but for the keys of another dtype.
struct SortedPairs {
  SortedPairs(Workspace& workspace, int64_t n, DType key_dtype = DType::i32);
  TensorView keys, values, sorted_keys, sorted_values;
};

// Counts the pairs of drop_over_capacity, whose keys are i64, and the scratch of its sort.
//   topk_idx  [tokens, top_k]
void count_drop_over_capacity(Workspace&, DropPolicy, int64_t seq_len, int64_t num_experts,
                              ConstTensorView topk_idx);
// The greatest key of that sort.
int64_t greatest_drop_key(DropPolicy, int64_t sequences, int64_t num_experts);

// The scratch of embedding_backward. The count function also counts the scratch of its sort.
SortedPairs embedding_backward_scratch(Workspace&, int64_t tokens);
void count_embedding_backward(Workspace&, int64_t tokens, int64_t rows);

// Slots of a block of plan_sends; all from one chunk.
constexpr int64_t kSegmentSlots = 1024;
//   first_tokens  of some chunks, and behind the last
int64_t num_segments(std::span<const int64_t> first_tokens, int64_t top_k);

struct SendsScratch {
  //   counts  SendPlan::counts
  SendsScratch(Workspace& workspace, std::span<const int64_t> first_tokens, int64_t top_k,
               ConstTensorView counts);
  TensorView segments;  // [segments, ranks * (1 + local experts)] i32
  TensorView messages;  // [chunks, 2, ranks + 1] i32
};

}  // namespace switchyard::cuda
