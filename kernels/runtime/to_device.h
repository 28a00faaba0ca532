#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Makes host values readable for the stream's ops, as a one-dimensional tensor with the lifetime of
// a tensor taken from the workspace at this point. The workspace owns the values from now on, so
// the caller need not keep them: on the CPU ops read them in place, and a CUDA device gets a copy
// in the workspace's memory.
template <class T>
ConstTensorView to_device(Stream& stream, Workspace& workspace, std::vector<T> values) {
  const Device device = stream.device();
  if (device.kind == DeviceKind::cpu) {
    const auto kept = std::make_shared<const std::vector<T>>(std::move(values));
    workspace.keep(kept);
    return {kept->data(), Shape{std::ssize(*kept)}, dtype_of<T>(), device};
  }
  // CUDA has read values in ordinary host memory when the copy returns.
  const ConstTensorView host = view_of(std::span<const T>(values));
  const TensorView moved = workspace.take(host.shape(), host.dtype());
  copy(stream, host, moved);
  return moved;
}

}  // namespace switchyard
