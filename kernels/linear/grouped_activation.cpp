#include "kernels/linear/grouped_activation.h"

#include <algorithm>
#include <climits>

#include "kernels/cuda/grouped_cutlass.h"
#include "kernels/cuda/sizes.h"
#include "kernels/linear/expert_product_method.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

// The tensor memory accelerator reads rows that begin at multiples of 16 bytes.
bool fits_cutlass(ConstTensorView rows, ConstTensorView weight) {
  return rows.dtype() == DType::bf16 && rows.dim(0) <= INT_MAX &&
         weight.dim(0) <= cuda::kMostGroupedExperts && weight.dim(1) % 8 == 0 &&
         weight.dim(2) % 8 == 0 && cuda::allow_vectors(rows.raw(), weight.raw());
}

bool uses_cutlass(const Stream& stream) {
  return stream.device().runs_cuda() && expert_product_method() == ExpertProductMethod::cutlass &&
         cuda::has_grouped_cutlass(stream.device());
}

void check_rows(Activation activation, ConstTensorView weight, std::span<const int64_t> row_offsets,
                ConstTensorView up, ConstTensorView row_scale, ConstTensorView act) {
  require_shape(up, {act.dim(0), act.dim(1) * (is_gated(activation) ? 2 : 1)}, "up");
  require_dtype(act, up.dtype(), "act");
  require(weight.rank() == 3 && std::ssize(row_offsets) == weight.dim(0) + 1,
          "row_offsets has {} entries, and weight the shape {}", row_offsets.size(),
          weight.shape());
  require(row_offsets.front() == 0 && row_offsets.back() == act.dim(0) &&
              std::ranges::is_sorted(row_offsets),
          "row_offsets must rise from 0 to {} rows", act.dim(0));
  if (row_scale) {
    require_shape(row_scale, {act.dim(0)}, "row_scale");
    require_dtype(row_scale, DType::f32, "row_scale");
  }
}

}  // namespace

bool fuses_activation_forward(const Stream& stream, Activation activation, ConstTensorView x,
                              ConstTensorView weight) {
  const bool halves_fit =
      !is_gated(activation) || weight.dim(1) % (2 * cuda::kGatedTileColumns) == 0;
  return halves_fit && uses_cutlass(stream) && fits_cutlass(x, weight);
}

bool fuses_activation_backward(const Stream& stream, ConstTensorView dy, ConstTensorView weight) {
  return uses_cutlass(stream) && fits_cutlass(dy, weight);
}

bool may_fuse_activation_backward(const Stream& stream, ConstTensorView dy,
                                  ConstTensorView weight) {
  const Device device = stream.device();
  if (!device.counts_only) return fuses_activation_backward(stream, dy, weight);
  using enum ExpertProductMethod;
  return device.kind == DeviceKind::cuda && cuda::has_grouped_cutlass_in_build() &&
         expert_product_method().value_or(cutlass) == cutlass && fits_cutlass(dy, weight);
}

void count_grouped_activation_backward(const Stream& stream, Workspace& workspace,
                                       ConstTensorView dy, ConstTensorView weight) {
  if (!stream.device().counts_only || !may_fuse_activation_backward(stream, dy, weight)) return;
  const WorkspaceScope scope(workspace);
  cuda::grouped_activation_backward_scratch(workspace, dy.dim(0), weight.dim(2));
}

void grouped_activation_forward(Stream& stream, Activation activation, ConstTensorView x,
                                ConstTensorView weight, std::span<const int64_t> row_offsets,
                                ConstTensorView row_scale, TensorView up, TensorView act) {
  check_rows(activation, weight, row_offsets, up, row_scale, act);
  require_shape(x, {up.dim(0), weight.dim(2)}, "x");
  require_shape(weight, {weight.dim(0), up.dim(1), x.dim(1)}, "weight");
  require_dtype(weight, x.dtype(), "weight");
  require_dtype(up, x.dtype(), "up");
  if (WorkObserver* observer = stream.observer()) {
    observer->products(
        {ProductKind::forward, x.dtype(), x.dim(0), up.dim(1), x.dim(1), row_offsets});
  }
  SWITCHYARD_BODY(stream, grouped_activation_forward)
  (stream, activation, x, weight, row_offsets, row_scale, up, act);
}

void grouped_activation_backward(Stream& stream, Workspace& workspace, Activation activation,
                                 ConstTensorView dy, ConstTensorView weight,
                                 std::span<const int64_t> row_offsets, ConstTensorView up,
                                 ConstTensorView row_scale, TensorView dup, TensorView drow_scale,
                                 TensorView act) {
  check_rows(activation, weight, row_offsets, up, row_scale, act);
  require_shape(dy, {up.dim(0), weight.dim(1)}, "dy");
  require_shape(weight, {weight.dim(0), dy.dim(1), act.dim(1)}, "weight");
  require_dtype(weight, dy.dtype(), "weight");
  require_dtype(up, dy.dtype(), "up");
  require_shape(dup, up.shape(), "dup");
  require_dtype(dup, up.dtype(), "dup");
  if (row_scale) require_shape(drow_scale, row_scale.shape(), "drow_scale");
  if (WorkObserver* observer = stream.observer()) {
    observer->products(
        {ProductKind::input_gradient, dy.dtype(), dy.dim(0), act.dim(1), dy.dim(1), row_offsets});
  }
  count_grouped_activation_backward(stream, workspace, dy, weight);
  SWITCHYARD_BODY(stream, grouped_activation_backward)
  (stream, workspace, activation, dy, weight, row_offsets, up, row_scale, dup, drow_scale, act);
}

TensorView cuda::grouped_activation_backward_scratch(Workspace& workspace, int64_t rows,
                                                     int64_t ffn) {
  return workspace.take({num_blocks(ffn, kGroupedTileColumns), rows}, DType::f32);
}

namespace cpu {

void grouped_activation_forward(Stream& stream, Activation activation, ConstTensorView x,
                                ConstTensorView weight, std::span<const int64_t> row_offsets,
                                ConstTensorView row_scale, TensorView up, TensorView act) {
  cpu::grouped_linear_forward(stream, x, weight, row_offsets, up);
  cpu::activation_forward(stream, activation, up, row_scale, act);
}

// The gradient of act lies where act is written last.
void grouped_activation_backward(Stream& stream, Workspace&, Activation activation,
                                 ConstTensorView dy, ConstTensorView weight,
                                 std::span<const int64_t> row_offsets, ConstTensorView up,
                                 ConstTensorView row_scale, TensorView dup, TensorView drow_scale,
                                 TensorView act) {
  cpu::grouped_linear_backward_input(stream, dy, weight, row_offsets, act);
  cpu::activation_backward(stream, activation, act, up, row_scale, dup, drow_scale);
  cpu::activation_forward(stream, activation, up, row_scale, act);
}

}  // namespace cpu
}  // namespace switchyard
