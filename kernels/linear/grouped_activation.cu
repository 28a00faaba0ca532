#include "kernels/linear/grouped_activation.h"

#include "kernels/cuda/grouped_cutlass.h"
#include "kernels/cuda/launch.h"
#include "kernels/linear/matmul.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

static_assert(ExpertProblems::num_bytes(kMostGroupedExperts) <= kReductionScratchBytes);

constexpr int kThreads = 256;

// The matrices of all experts, whose rows lie one behind the other.
struct Operands {
  const bfloat16* a;  // [rows, k]
  const bfloat16* b;  // of each expert n k elements
  const bfloat16* c;  // rows of c_width elements; null: there is none
  bfloat16* d;        // rows of c_width elements
  int64_t n, k, b_stride, c_width;
};

// A thread describes the product of one expert.
__global__ void describe_products_kernel(Operands o, ExpertProblems problems) {
  const auto e = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (e >= problems.experts) return;
  const int64_t first = problems.row_offsets[e];
  problems.a[e] = o.a + first * o.k;
  problems.b[e] = o.b + e * o.n * o.k;
  problems.c[e] = o.c ? o.c + first * o.c_width : nullptr;
  problems.d[e] = o.d + first * o.c_width;
  problems.a_stride[e] = o.k;
  problems.b_stride[e] = o.b_stride;
  problems.c_stride[e] = problems.d_stride[e] = o.c_width;
  problems.sizes[e] = {static_cast<int32_t>(problems.row_offsets[e + 1] - first),
                       static_cast<int32_t>(o.n), static_cast<int32_t>(o.k)};
}

// sums[r] = the sum over tiles of parts[t][r], in their order.
__global__ void sum_tiles_kernel(const float* parts, int64_t tiles, int64_t rows, float* sums) {
  const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (r >= rows) return;
  float sum = 0.0f;
  for (int64_t t = 0; t < tiles; ++t) sum += parts[t * rows + r];
  sums[r] = sum;
}

// Only the offsets travel to the device; it works out the rest.
ExpertProblems describe_products(Stream& stream, const Operands& operands,
                                 std::span<const int64_t> row_offsets) {
  const int64_t experts = std::ssize(row_offsets) - 1;
  const ExpertProblems problems(reduction_scratch(stream, ExpertProblems::num_bytes(experts)),
                                experts);
  upload(stream, std::as_bytes(row_offsets), problems.row_offsets);
  launch(describe_products_kernel, num_blocks(experts, kThreads), kThreads, 0, stream, operands,
         problems);
  return problems;
}

const float* scales_of(ConstTensorView row_scale) {
  return row_scale ? row_scale.data<float>() : nullptr;
}

}  // namespace

void cuda::grouped_activation_forward(Stream& stream, Activation activation, ConstTensorView x,
                                      ConstTensorView weight, std::span<const int64_t> row_offsets,
                                      ConstTensorView row_scale, TensorView up, TensorView act) {
  if (act.dim(0) == 0) return;
  if (!fuses_activation_forward(stream, activation, x, weight) ||
      !allow_vectors(up.raw(), act.raw())) {
    cuda::grouped_linear_forward(stream, x, weight, row_offsets, up);
    return cuda::activation_forward(stream, activation, up, row_scale, act);
  }
  const Operands operands{.a = x.data<bfloat16>(),
                          .b = weight.data<bfloat16>(),
                          .c = nullptr,
                          .d = up.data<bfloat16>(),
                          .n = up.dim(1),
                          .k = x.dim(1),
                          .b_stride = x.dim(1),
                          .c_width = up.dim(1)};
  grouped_cutlass_forward(stream, describe_products(stream, operands, row_offsets),
                          {.activation = activation,
                           .rows = act.dim(0),
                           .row_scale = scales_of(row_scale),
                           .act = act.data<bfloat16>(),
                           .gate_up = is_gated(activation) ? operands.d : nullptr});
}

void cuda::grouped_activation_backward(Stream& stream, Workspace& workspace, Activation activation,
                                       ConstTensorView dy, ConstTensorView weight,
                                       std::span<const int64_t> row_offsets, ConstTensorView up,
                                       ConstTensorView row_scale, TensorView dup,
                                       TensorView drow_scale, TensorView act) {
  if (act.dim(0) == 0) return;
  if (!fuses_activation_backward(stream, dy, weight) ||
      !allow_vectors(up.raw(), dup.raw(), act.raw())) {
    // The gradient of act lies where act is written last.
    cuda::grouped_linear_backward_input(stream, dy, weight, row_offsets, act);
    cuda::activation_backward(stream, activation, act, up, row_scale, dup, drow_scale);
    return cuda::activation_forward(stream, activation, up, row_scale, act);
  }
  const WorkspaceScope scope(workspace);
  const int64_t rows = act.dim(0), ffn = act.dim(1);
  const TensorView dots =
      row_scale ? grouped_activation_backward_scratch(workspace, rows, ffn) : TensorView();
  const bool gated = is_gated(activation);
  const Operands operands{.a = dy.data<bfloat16>(),
                          .b = weight.data<bfloat16>(),
                          .c = up.data<bfloat16>(),
                          .d = dup.data<bfloat16>(),
                          .n = ffn,
                          .k = dy.dim(1),
                          .b_stride = ffn,
                          .c_width = up.dim(1)};
  grouped_cutlass_backward(stream, describe_products(stream, operands, row_offsets),
                           {.activation = activation,
                            .rows = rows,
                            .row_scale = scales_of(row_scale),
                            .act = act.data<bfloat16>(),
                            .up = gated ? operands.c + ffn : nullptr,
                            .dup = gated ? operands.d + ffn : nullptr,
                            .dots = dots ? dots.data<float>() : nullptr});
  if (!dots) return;
  launch(sum_tiles_kernel, num_blocks(rows, kThreads), kThreads, 0, stream, dots.data<float>(),
         dots.dim(0), rows, drow_scale.data<float>());
}

}  // namespace switchyard
