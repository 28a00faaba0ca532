#pragma once

// Attention as a call of cuDNN. CMake chooses optional/cudnn_graphs.cpp, or absent/cudnn_graphs.cpp
// where the headers of cuDNN or of its frontend are missing; tests/simt has an emulated one.

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "kernels/runtime/bfloat16.h"
#include "kernels/runtime/device.h"

namespace switchyard::cuda {

// One causal problem in bf16: dimensions, and the strides of tensors [batch, heads, seq_len,
// head_dim] in elements.
struct CudnnProblem {
  using Dims = std::array<int64_t, 4>;

  int64_t batch, heads, kv_heads, seq_len, head_dim;
  float scale;
  bool backward;
  auto operator<=>(const CudnnProblem&) const = default;

  Dims q_dims() const { return {batch, heads, seq_len, head_dim}; }
  Dims kv_dims() const { return {batch, kv_heads, seq_len, head_dim}; }
  Dims lse_dims() const { return {batch, heads, seq_len, 1}; }
  // q and dq, k, v and their gradients, and lse lie head by head; out and dout token by token.
  static Dims head_major(const Dims& d) { return {d[1] * d[2] * d[3], d[2] * d[3], d[3], 1}; }
  static Dims token_major(const Dims& d) { return {d[1] * d[2] * d[3], d[3], d[1] * d[3], 1}; }
};

// The operands of a problem: addresses on the device, aligned to 16 bytes. The forward pass writes
// out and lse, the natural logarithm; the backward pass reads them, and dout, and writes the rest.
struct CudnnOperands {
  const bfloat16 *q, *k, *v;
  bfloat16* out;
  float* lse;
  const bfloat16* dout = nullptr;
  bfloat16 *dq = nullptr, *dk = nullptr, *dv = nullptr;
};

bool has_cudnn_in_build();
// Whether the machine has the library, too.
bool has_cudnn();

// Bytes of scratch that a problem needs; nothing if cuDNN does not compute it on this device. The
// first call for a problem builds its plan, in a second or so; the stream keeps it.
std::optional<size_t> cudnn_scratch_bytes(Stream& stream, const CudnnProblem& problem);

// Only after cudnn_scratch_bytes for the same stream and problem. Results are the same each time.
void run_cudnn(Stream& stream, const CudnnProblem& problem, const CudnnOperands& operands,
               void* scratch);

}  // namespace switchyard::cuda
