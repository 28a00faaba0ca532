#pragma once

#include <utility>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

// The body of op `name` for the device of `stream`: cpu::name, or cuda::name where it was compiled.
#ifdef SWITCHYARD_WITH_CUDA
#define SWITCHYARD_BODY(stream, name) \
  (*((stream).device().kind == ::switchyard::DeviceKind::cuda ? &cuda::name : &cpu::name))
#else
#define SWITCHYARD_BODY(stream, name) \
  (*(::switchyard::require_cpu((stream), #name), &cpu::name))
#endif

namespace switchyard {

inline void require_cpu(const Stream& stream, const char* op) {
  require(stream.device().kind == DeviceKind::cpu, "{} has no body for {} in this build", op,
          to_string(stream.device()));
}

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
  require(tensor.shape() == shape, "{} has shape {}, expected {}", name, to_string(tensor.shape()),
          to_string(shape));
}

inline void require_dtype(ConstTensorView tensor, DType dtype, const char* name) {
  require(tensor.dtype() == dtype, "{} is {}, expected {}", name, to_string(tensor.dtype()),
          to_string(dtype));
}

}  // namespace switchyard
