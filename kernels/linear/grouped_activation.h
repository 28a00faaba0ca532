#pragma once

#include <cstdint>
#include <span>

#include "kernels/basic/activation.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// The experts' products next to their activation, together with the activation. Rows are grouped by
// expert as in grouped_linear_forward; `width` is ffn, or 2 ffn of a gated function.
//   x          [rows, in]
//   weight     [experts, width, in]
//   row_scale  [rows] f32, the router's weights; may be empty
//   up         [rows, width]         = x weight[e]^T
//   act        [rows, ffn]           = row_scale activation(up)
using GroupedActivationForward = void(Stream&, Activation, ConstTensorView x,
                                      ConstTensorView weight, std::span<const int64_t> row_offsets,
                                      ConstTensorView row_scale, TensorView up, TensorView act);
// The backward pass of act and of the map behind it, y = act weight[e]^T.
//   dy          [rows, out]
//   weight      [experts, out, ffn]
//   up          [rows, width]
//   dup         [rows, width]        the gradient of up; that of act is dy weight[e]
//   drow_scale  [rows] f32           empty if row_scale is empty
//   act         [rows, ffn]          as the forward pass has it
using GroupedActivationBackward = void(Stream&, Workspace&, Activation, ConstTensorView dy,
                                       ConstTensorView weight, std::span<const int64_t> row_offsets,
                                       ConstTensorView up, ConstTensorView row_scale,
                                       TensorView dup, TensorView drow_scale, TensorView act);

GroupedActivationForward grouped_activation_forward;
GroupedActivationBackward grouped_activation_backward;

// Whether the ops are one product with the activation in its epilogue
// (ExpertProductMethod::cutlass) and not the same as grouped_linear_* and activation_*.
//   x, dy, weight  as above
bool fuses_activation_forward(const Stream&, Activation, ConstTensorView x, ConstTensorView weight);
bool fuses_activation_backward(const Stream&, ConstTensorView dy, ConstTensorView weight);
// The same; on a device that only counts, whether a run of this build may do so.
bool may_fuse_activation_backward(const Stream&, ConstTensorView dy, ConstTensorView weight);
// On a device that only counts, where a run may do so: takes and releases the op's scratch.
void count_grouped_activation_backward(const Stream&, Workspace&, ConstTensorView dy,
                                       ConstTensorView weight);

namespace cpu {
GroupedActivationForward grouped_activation_forward;
GroupedActivationBackward grouped_activation_backward;
}  // namespace cpu
namespace cuda {
GroupedActivationForward grouped_activation_forward;
GroupedActivationBackward grouped_activation_backward;
//   [tiles of ffn, rows] f32
TensorView grouped_activation_backward_scratch(Workspace&, int64_t rows, int64_t ffn);
}  // namespace cuda

}  // namespace switchyard
