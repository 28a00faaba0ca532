#pragma once

// The products of all experts next to their activation by CUTLASS's grouped kernels for Hopper,
// which read the numbers of rows on the device and compute the activation in the epilogue. CMake
// chooses optional/grouped_cutlass.cu, or absent/grouped_cutlass.cpp where CUTLASS's headers are
// not there or no code for Hopper is wanted.

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/basic/activation.h"
#include "kernels/runtime/bfloat16.h"
#include "kernels/runtime/device.h"

namespace switchyard::cuda {

// Columns of the blocks that the kernels compute: each gives a row one partial sum. In the forward
// pass of a gated function half of them are gates, so its width must be a multiple of the half.
constexpr int64_t kGroupedTileColumns = 128, kGatedTileColumns = kGroupedTileColumns / 2;

// One product per expert, d [m, n] = a [m, k] b [k, n], in device memory: lists with an entry per
// expert. Strides are elements from row to row as stored. An expert may have no rows.
struct ExpertProblems {
  struct Sizes {
    int32_t m, n, k;
  };

  // The lists lie in `memory`, which is aligned to 8 bytes.
  ExpertProblems(void* memory, int64_t num_experts);
  static constexpr size_t num_bytes(int64_t num_experts) {
    return static_cast<size_t>(num_experts + 1) * sizeof(int64_t) +
           static_cast<size_t>(num_experts) * (8 * sizeof(int64_t) + sizeof(Sizes));
  }

  int experts;
  int64_t* row_offsets;  // experts + 1 entries: where each expert's rows begin
  const void **a, **b, **c;
  void** d;
  int64_t *a_stride, *b_stride, *c_stride, *d_stride;
  Sizes* sizes;
};
// They fit into a stream's scratch.
constexpr int64_t kMostGroupedExperts = 768;

inline ExpertProblems::ExpertProblems(void* memory, int64_t num_experts)
    : experts(static_cast<int>(num_experts)) {
  auto* at = static_cast<int64_t*>(memory);
  const auto take = [&](int64_t count) { return std::exchange(at, at + count); };
  row_offsets = take(num_experts + 1);
  a = reinterpret_cast<const void**>(take(num_experts));
  b = reinterpret_cast<const void**>(take(num_experts));
  c = reinterpret_cast<const void**>(take(num_experts));
  d = reinterpret_cast<void**>(take(num_experts));
  a_stride = take(num_experts);
  b_stride = take(num_experts);
  c_stride = take(num_experts);
  d_stride = take(num_experts);
  sizes = reinterpret_cast<Sizes*>(at);
}

// What the epilogues read and write beside c and d, in device memory. `rows` are those of all
// experts; rows of a gated function's input have its gate first, then `up`.
struct ActivationEpilogue {
  Activation activation;
  int64_t rows;
  const float* row_scale;        // [rows] or null
  bfloat16* act;                 // [rows, ffn]
  bfloat16* gate_up = nullptr;   // forward, gated only: [rows, 2 ffn], where d lies
  const bfloat16* up = nullptr;  // backward, gated only: the second half of the first row's input
  bfloat16* dup = nullptr;       // and of its gradient
  float* dots = nullptr;         // backward: [tiles of ffn, rows], null without row_scale
};

bool has_grouped_cutlass_in_build();
// Whether the build has them and the device can run them.
bool has_grouped_cutlass(Device device);

// a [rows, k], b [experts, n, k] transposed; d = the product, act = row_scale activation(d), with
// the bits that activation_forward makes of d.
void grouped_cutlass_forward(Stream& stream, const ExpertProblems& problems,
                             const ActivationEpilogue& epilogue);
// a [rows, k], b [experts, k, n], whose product dact is not stored. c is the activation's input, or
// its gate, and d the gradient of that; act as above. dots[t] has every row's
// <dact, activation(c)> over the columns of tile t.
void grouped_cutlass_backward(Stream& stream, const ExpertProblems& problems,
                              const ActivationEpilogue& epilogue);

}  // namespace switchyard::cuda
