#pragma once

// Products of all experts by one call of cuBLASLt, which reads their sizes on the device. CMake
// chooses optional/grouped_lt.cpp, or absent/grouped_lt.cpp where cuBLASLt's header does not have
// such products.

#include <span>

#include "kernels/cuda/products.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cuda {

// Whether the build has them, the cuBLAS that is loaded has them without known faults, and the
// device can run them.
bool has_grouped_lt(Device device);

// c = or += op(a) op(b) for bf16 products, none of which is empty; all have the same transposes and
// `is_aligned`. Returns false, having done nothing, if the library has no algorithm for them or
// their sizes do not fit into the stream's scratch.
//   c_dtype  f32 or bf16
bool multiply_grouped_lt(Stream& stream, std::span<const Product> products, DType c_dtype,
                         Accumulate accumulate);

}  // namespace switchyard::cuda
