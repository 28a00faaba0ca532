#include "kernels/cuda/scratch.h"

#include <algorithm>
#include <bit>

#include "kernels/attention/attention_method.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/row_blocks.h"
#include "kernels/cuda/sizes.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard::cuda {
namespace {

int64_t num_pieces(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }

// Counts the scratch that a library takes during one call.
void count_call(Workspace& workspace, size_t num_bytes) {
  const WorkspaceScope scope(workspace);
  workspace.take({static_cast<int64_t>(num_bytes)}, DType::u8);
}

}  // namespace

// A radix sort makes one pass per 8 bits of the keys. With more than one pass it needs space for
// the pairs. Its blocks have 256 counters of four bytes each, and at least 4096 pairs, or 2048
// where keys have eight bytes.
size_t sort_scratch_bytes(int64_t n, int64_t max_key, size_t key_bytes) {
  constexpr size_t kFixed = size_t{64} << 10;
  const auto count = static_cast<size_t>(n);
  const bool many_passes = std::bit_width(static_cast<uint64_t>(max_key)) > 8;
  return kFixed + count * key_bytes / 16 +
         (many_passes ? (key_bytes + sizeof(int32_t)) * count : 0);
}

// A scan's blocks of at least 128 values exchange 8 bytes each.
size_t scan_scratch_bytes(int64_t n) { return (size_t{4} << 10) + static_cast<size_t>(n) / 16; }

TensorView attention_backward_scratch(Workspace& workspace, ConstTensorView q) {
  return workspace.take({q.dim(0) * q.dim(1) * q.dim(2)}, DType::f32);
}

namespace {

bool may_use_cudnn(ConstTensorView q, ConstTensorView document_start, bool backward) {
  return has_cudnn_in_build() && attention_method() != AttentionMethod::own &&
         fits_cudnn(q, document_start, backward);
}

}  // namespace

void count_attention_forward(Workspace& workspace, ConstTensorView q,
                             ConstTensorView document_start) {
  if (may_use_cudnn(q, document_start, /*backward=*/false)) {
    count_call(workspace, cudnn_forward_bytes(q));
  }
}

void count_attention_backward(Workspace& workspace, ConstTensorView q, ConstTensorView k,
                              ConstTensorView document_start) {
  const bool may = may_use_cudnn(q, document_start, /*backward=*/true);
  if (may) count_call(workspace, cudnn_backward_bytes(q, k));
  if (!may || !attention_method()) attention_backward_scratch(workspace, q);
}

TensorView attend_cached_scratch(Workspace& workspace, ConstTensorView q, ConstTensorView k_cache,
                                 ConstTensorView positions) {
  const int64_t splits = positions ? num_pieces(positions.dim(2), kListedKeysPerSplit)
                                   : num_pieces(k_cache.dim(2), kKeysPerSplit);
  return workspace.take({q.dim(0), q.dim(1), splits, q.dim(2) + 2}, DType::f32);
}

TensorView select_top_k_scratch(Workspace& workspace, ConstTensorView scores) {
  const int64_t max_len = scores.dim(2);
  const int64_t splits = max_len <= kSelectionOfOneBlock
                             ? 1
                             : std::min(num_pieces(max_len, kSelectionTile), kMaxSelectionSplits);
  return workspace.take({scores.dim(0) * scores.dim(1),
                         static_cast<int64_t>(size_of(scores.dtype())), splits, kSelectionBins},
                        DType::i32);
}

bool norm_backward_vectors(ConstTensorView dy, ConstTensorView x, ConstTensorView weight,
                           ConstTensorView dx) {
  return allow_vectors(dy.raw(), x.raw(), weight.raw(), dx.raw());
}

TensorView norm_backward_scratch(Workspace& workspace, Device device, ConstTensorView x,
                                 bool vectors, int64_t columns) {
  const int64_t tokens = x.dim(0), hidden = x.dim(1);
  int64_t blocks = 0;
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
    dispatch_row<T>(hidden, vectors, [&]<int kVec, int kSteps>() {
      blocks = backward_blocks(switchyard::num_multiprocessors(device), tokens,
                               row_block(hidden, kVec, kSteps), kSteps);
    });
  });
  return workspace.take({blocks, columns}, DType::f32);
}

TensorView projection_norm_scratch(Workspace& workspace, int64_t tokens, int64_t columns) {
  return workspace.take({num_pieces(tokens, kProjectionNormTokens), columns}, DType::f32);
}

TensorView add_bias_backward_scratch(Workspace& workspace, ConstTensorView dy) {
  return workspace.take({num_pieces(dy.dim(0), kBiasGradientRows), dy.dim(1)}, DType::f32);
}

TensorView router_forward_scratch(Workspace& workspace, int64_t seq_len, ConstTensorView counts) {
  const int64_t chunks = num_pieces(seq_len, kRouterTokensPerChunk);
  return workspace.take({counts.dim(0), chunks, 2, counts.dim(1)}, DType::f64);
}

SortedPairs::SortedPairs(Workspace& workspace, int64_t n, DType key_dtype)
    : keys(workspace.take({n}, key_dtype)),
      values(workspace.take({n}, DType::i32)),
      sorted_keys(workspace.take({n}, key_dtype)),
      sorted_values(workspace.take({n}, DType::i32)) {}

// Sequence and expert, and below them the 32 bits of the weight where it decides.
int64_t greatest_drop_key(DropPolicy policy, int64_t sequences, int64_t num_experts) {
  const int64_t lists = sequences * num_experts;
  return (policy == DropPolicy::lowest_weight ? lists << 32 : lists) - 1;
}

void count_drop_over_capacity(Workspace& workspace, DropPolicy policy, int64_t seq_len,
                              int64_t num_experts, ConstTensorView topk_idx) {
  const SortedPairs pairs(workspace, topk_idx.num_elements(), DType::i64);
  const int64_t sequences = topk_idx.dim(0) / seq_len;
  count_call(workspace, sort_scratch_bytes(topk_idx.num_elements(),
                                           greatest_drop_key(policy, sequences, num_experts),
                                           sizeof(int64_t)));
}

SortedPairs embedding_backward_scratch(Workspace& workspace, int64_t tokens) {
  return SortedPairs(workspace, tokens);
}

void count_embedding_backward(Workspace& workspace, int64_t tokens, int64_t rows) {
  embedding_backward_scratch(workspace, tokens);
  count_call(workspace, sort_scratch_bytes(tokens, /*max_key=*/rows));
}

int64_t num_segments(std::span<const int64_t> first_tokens, int64_t top_k) {
  int64_t segments = 0;
  for (size_t c = 1; c < first_tokens.size(); ++c) {
    segments += num_pieces((first_tokens[c] - first_tokens[c - 1]) * top_k, kSegmentSlots);
  }
  return segments;
}

SendsScratch::SendsScratch(Workspace& workspace, std::span<const int64_t> first_tokens,
                           int64_t top_k, ConstTensorView counts)
    : segments(workspace.take({num_segments(first_tokens, top_k), counts.dim(0) * counts.dim(2)},
                              DType::i32)),
      messages(workspace.take({counts.dim(1), 2, counts.dim(0) + 1}, DType::i32)) {}

}  // namespace switchyard::cuda
