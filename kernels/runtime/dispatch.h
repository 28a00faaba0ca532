#pragma once

#include <type_traits>
#include <utility>

#include "kernels/runtime/check.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"
#include "kernels/runtime/work_observer.h"
#include "op_body.h"  // chosen by CMake: kernels/cuda/present/ or kernels/cuda/absent/

// Calls the body of op `name` for the device of `stream`, cpu::name or cuda::name, after checking
// that every tensor is on that device. On a device that only counts, it only makes this check.
#define SWITCHYARD_BODY(stream, name) \
  (::switchyard::CheckedBody{SWITCHYARD_OP_BODY((stream).device(), name), #name})

namespace switchyard {

template <class Argument>
void require_on_device(const Argument& argument, Device device, const char* op) {
  if constexpr (std::is_base_of_v<ConstTensorView, Argument>) {
    require(!argument || argument.device() == device,
            "{}: a tensor of shape {} is on {}, the stream on {}", op, argument.shape(),
            to_string(argument.device()), to_string(device));
  }
}

template <class Argument>
int64_t bytes_of_tensor(const Argument& argument) {
  if constexpr (std::is_base_of_v<ConstTensorView, Argument>) {
    if (argument) return static_cast<int64_t>(argument.num_bytes());
  }
  return 0;
}

template <class Body>
struct CheckedBody {
  Body* body;
  const char* name;
  bool across_devices = false;

  // For ops that move data between devices.
  CheckedBody with_any_device() const { return {body, name, true}; }

  template <class... Args>
  void operator()(Stream& stream, Args&&... args) const {
    if (!across_devices) (require_on_device(args, stream.device(), name), ...);
    WorkObserver* observer = stream.observer();
    if (observer) observer->begin_op(name, (int64_t{0} + ... + bytes_of_tensor(args)));
    if (!stream.device().counts_only) body(stream, std::forward<Args>(args)...);
    if (observer) observer->end_op();
  }
};
template <class Body>
CheckedBody(Body*, const char*) -> CheckedBody<Body>;

// For ops with scratch. On a device that only counts, it takes the scratch of the body for the
// device's kind from the workspace and releases it. `of_cpu` and `of_cuda` call the same function
// as the body does, so that the two cannot differ.
template <class OfCpu, class OfCuda>
void count_scratch(Stream& stream, Workspace& workspace, OfCpu&& of_cpu, OfCuda&& of_cuda) {
  if (!stream.device().counts_only) return;
  const WorkspaceScope scope(workspace);
  stream.device().kind == DeviceKind::cpu ? of_cpu() : of_cuda();
}
inline void no_scratch() {}

// Calls body.operator()<T>() with T = float or bfloat16.
template <class Body>
void dispatch_compute_dtype(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32:
      return body.template operator()<float>();
    case DType::bf16:
      return body.template operator()<bfloat16>();
    default:
      fail("expected f32 or bf16, not {}", to_string(dtype));
  }
}

inline void require_shape(ConstTensorView tensor, const Shape& shape, const char* name) {
  require(tensor.shape() == shape, "{} has shape {}, expected {}", name, tensor.shape(), shape);
}

inline void require_dtype(ConstTensorView tensor, DType dtype, const char* name) {
  require(tensor.dtype() == dtype, "{} is {}, expected {}", name, to_string(tensor.dtype()),
          to_string(dtype));
}

}  // namespace switchyard
