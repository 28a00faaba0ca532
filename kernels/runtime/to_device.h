#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Host values where ops of the stream can read them, as a one-dimensional tensor that lives as long
// as what is taken from the workspace at this point. The values belong to the workspace from here
// on, so nobody has to keep them: on the CPU ops read them where they are, and a CUDA device gets
// a copy in the workspace's memory.
template <class T>
ConstTensorView to_device(Stream& stream, Workspace& workspace, std::vector<T> values) {
  const Device device = stream.device();
  if (device.kind == DeviceKind::cpu) {
    const auto kept = std::make_shared<const std::vector<T>>(std::move(values));
    workspace.keep(kept);
    return {kept->data(), Shape{std::ssize(*kept)}, dtype_of<T>(), device};
  }
  // From ordinary host memory CUDA takes the values before it returns.
  const ConstTensorView host = view_of(std::span<const T>(values));
  const TensorView moved = workspace.take(host.shape(), host.dtype());
  copy(stream, host, moved);
  return moved;
}

}  // namespace switchyard
