#pragma once

#include <cstddef>
#include <span>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Values of a tensor as f32 in host memory.
struct HostF32 {
  ConstTensorView view;    // f32, in the shape of the tensor
  Tensor widened, copied;  // own the memory of `view` unless it shows the tensor itself

  std::span<const float> values() const {
    return {view.data<float>(), static_cast<size_t>(view.num_elements())};
  }
};

// The values of x [...] f32 or bf16 on the stream's device. For f32 on the CPU the view shows x
// itself, which must then outlive the result; else it shows a copy, complete when this returns.
inline HostF32 host_f32(Stream& stream, ConstTensorView x) {
  HostF32 host{.view = x, .widened = {}, .copied = {}};
  if (x.dtype() != DType::f32) {
    host.widened = Tensor(x.shape(), DType::f32, x.device());
    cast(stream, x, host.widened);
    host.view = host.widened.view();
  }
  if (x.device().kind != DeviceKind::cpu) {
    host.copied = Tensor(x.shape(), DType::f32);
    copy(stream, host.view, host.copied);
    stream.synchronize();
    host.view = host.copied.view();
  }
  return host;
}

}  // namespace switchyard
