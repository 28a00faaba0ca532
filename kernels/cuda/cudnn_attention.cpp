#include "kernels/cuda/cudnn_attention.h"

#include <algorithm>

#include "kernels/cuda/sizes.h"

namespace switchyard::cuda {
namespace {

constexpr int64_t kMostHeadDim = 256;
// Of the gradients of scores: a call takes as many sequences as fit into the first, and one whose
// gradients do not fit into the second is left to our kernel.
constexpr int64_t kScoreBytesPerCall = int64_t{512} << 20, kMostScoreBytes = int64_t{2} << 30;
constexpr int64_t kSmallBytes = 64 << 10;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The gradients of all scores of a sequence, in bf16, in tiles of 64 queries and 128 keys.
int64_t score_bytes(ConstTensorView q) {
  return q.dim(1) * round_up(q.dim(2), 64) * round_up(q.dim(2), 128) *
         static_cast<int64_t>(sizeof(bfloat16));
}

CudnnProblem problem_of(ConstTensorView q, ConstTensorView k, int64_t batch, float scale,
                        bool backward) {
  return {.batch = batch,
          .heads = q.dim(1),
          .kv_heads = k.dim(1),
          .seq_len = q.dim(2),
          .head_dim = q.dim(3),
          .scale = scale,
          .backward = backward};
}

// The scratch of one call: the planned bytes, or those that cuDNN asks for if they are more.
void* take_scratch(Workspace& workspace, size_t planned, size_t asked) {
  return workspace.take({static_cast<int64_t>(std::max(planned, asked))}, DType::u8).raw();
}

// cuDNN takes addresses of values that it only reads as it takes others.
float* writable(ConstTensorView x) { return const_cast<float*>(x.data<float>()); }
bfloat16* writable_bf16(ConstTensorView x) { return const_cast<bfloat16*>(x.data<bfloat16>()); }

}  // namespace

bool fits_cudnn(ConstTensorView q, ConstTensorView document_start, bool backward) {
  return q.dtype() == DType::bf16 && !document_start && q.dim(3) % 8 == 0 &&
         q.dim(3) <= kMostHeadDim && q.dim(0) > 0 && q.dim(2) > 1 &&
         (!backward || score_bytes(q) <= kMostScoreBytes);
}

int64_t cudnn_sequences_per_call(ConstTensorView q) {
  return std::clamp<int64_t>(kScoreBytesPerCall / score_bytes(q), 1, q.dim(0));
}

size_t cudnn_forward_bytes(ConstTensorView q) {
  // The lengths of sequences, where they are no multiple of a tile.
  return static_cast<size_t>(kSmallBytes + q.dim(0) * 2 * int64_t{sizeof(int32_t)});
}

size_t cudnn_backward_bytes(ConstTensorView q, ConstTensorView k) {
  const int64_t sequences = cudnn_sequences_per_call(q), rows = sequences * q.dim(1) * q.dim(2);
  // <dout, out> of each row, and dk and dv of each query head, which are added up over a group.
  int64_t bytes = sequences * score_bytes(q) + rows * int64_t{sizeof(float)};
  if (k.dim(1) != q.dim(1)) bytes += 2 * rows * q.dim(3) * int64_t{sizeof(float)};
  return static_cast<size_t>(bytes) + cudnn_forward_bytes(q);
}

bool cudnn_attention_forward(Stream& stream, Workspace& workspace, ConstTensorView q,
                             ConstTensorView k, ConstTensorView v, float scale, TensorView out,
                             TensorView lse) {
  if (!allow_vectors(q.raw(), k.raw(), v.raw(), out.raw())) return false;
  const CudnnProblem problem = problem_of(q, k, q.dim(0), scale, /*backward=*/false);
  const std::optional<size_t> asked = cudnn_scratch_bytes(stream, problem);
  if (!asked) return false;
  const WorkspaceScope scope(workspace);
  run_cudnn(stream, problem,
            {.q = q.data<bfloat16>(),
             .k = k.data<bfloat16>(),
             .v = v.data<bfloat16>(),
             .out = out.data<bfloat16>(),
             .lse = lse.data<float>()},
            take_scratch(workspace, cudnn_forward_bytes(q), *asked));
  return true;
}

bool cudnn_attention_backward(Stream& stream, Workspace& workspace, ConstTensorView dout,
                              ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView lse, float scale, TensorView dq,
                              TensorView dk, TensorView dv) {
  if (!allow_vectors(dout.raw(), q.raw(), k.raw(), v.raw(), out.raw(), dq.raw(), dk.raw(),
                     dv.raw())) {
    return false;
  }
  const int64_t batch = q.dim(0), seq_len = q.dim(2), most = cudnn_sequences_per_call(q);
  // The last call may have fewer sequences, which is another problem.
  size_t asked = 0;
  for (const int64_t count : {most, batch % most}) {
    if (count == 0) continue;
    const auto bytes = cudnn_scratch_bytes(stream, problem_of(q, k, count, scale, true));
    if (!bytes) return false;
    asked = std::max(asked, *bytes);
  }
  const WorkspaceScope scope(workspace);
  void* scratch = take_scratch(workspace, cudnn_backward_bytes(q, k), asked);
  for (int64_t first = 0; first < batch; first += most) {
    const int64_t count = std::min(most, batch - first);
    const int64_t first_token = first * seq_len, tokens = count * seq_len;
    run_cudnn(stream, problem_of(q, k, count, scale, true),
              {.q = q.rows(first, count).data<bfloat16>(),
               .k = k.rows(first, count).data<bfloat16>(),
               .v = v.rows(first, count).data<bfloat16>(),
               .out = writable_bf16(out.rows(first_token, tokens)),
               .lse = writable(lse.rows(first, count)),
               .dout = dout.rows(first_token, tokens).data<bfloat16>(),
               .dq = dq.rows(first, count).data<bfloat16>(),
               .dk = dk.rows(first, count).data<bfloat16>(),
               .dv = dv.rows(first, count).data<bfloat16>()},
              scratch);
  }
  return true;
}

}  // namespace switchyard::cuda
