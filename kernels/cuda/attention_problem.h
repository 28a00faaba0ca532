#pragma once

// For .cu files: the problem description that the attention kernels share.

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

#include "kernels/runtime/bfloat16.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cuda {

// The shapes are those of kernels/attention/attention.h.
struct AttentionProblem {
  int64_t heads, kv_heads, seq_len, head_dim;
  float scale;
  const int32_t* document_start;  // [batch, seq_len], or null

  __device__ int64_t kv_head_of(int64_t head) const { return head / (heads / kv_heads); }
  // Row t of [batch, heads, seq_len, head_dim].
  __device__ int64_t q_row(int64_t b, int64_t h, int64_t t) const {
    return ((b * heads + h) * seq_len + t) * head_dim;
  }
  __device__ int64_t kv_row(int64_t b, int64_t h, int64_t t) const {
    return ((b * kv_heads + h) * seq_len + t) * head_dim;
  }
  // Row t of [batch * seq_len, heads * head_dim].
  __device__ int64_t out_row(int64_t b, int64_t h, int64_t t) const {
    return ((b * seq_len + t) * heads + h) * head_dim;
  }
  __device__ int64_t lse_row(int64_t b, int64_t h) const { return (b * heads + h) * seq_len; }
  __device__ int64_t first_key(int64_t b, int64_t query) const {
    return document_start ? max(document_start[b * seq_len + query], 0) : 0;
  }
  __device__ bool sees(int64_t b, int64_t query, int64_t key) const {
    return key <= query && key >= first_key(b, query);
  }
};

// The tensor cores take bf16, heads of 64 or 128 elements, and operands aligned to 16 bytes
// (kernels/attention/attention_tensor_core.cu).
bool fits_tensor_cores(const AttentionProblem& problem, DType dtype,
                       std::initializer_list<const void*> operands);
void tensor_core_attention_forward(Stream& stream, const AttentionProblem& problem, int64_t batch,
                                   const bfloat16* q, const bfloat16* k, const bfloat16* v,
                                   bfloat16* out, float* lse);
//   delta  [batch, heads, seq_len] f32: <dout, out> of each row
void tensor_core_attention_backward(Stream& stream, const AttentionProblem& problem, int64_t batch,
                                    const bfloat16* dout, const bfloat16* q, const bfloat16* k,
                                    const bfloat16* v, const float* lse, const float* delta,
                                    bfloat16* dq, bfloat16* dk, bfloat16* dv);

}  // namespace switchyard::cuda
