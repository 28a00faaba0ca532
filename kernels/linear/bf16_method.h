#pragma once

#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/methods.h"

namespace switchyard {

// How the CPU multiplies bf16 matrices. Sums are f32 either way, but results are rounded
// differently, so all ranks of a job use the same method, and a run keeps its own when it is
// resumed.
enum class Bf16Method {
  native,   // oneDNN's bf16 products (AMX or avx512_bf16)
  widened,  // blocks are widened to f32 and multiplied by oneDNN's f32 products
};
SWITCHYARD_ENUM_NAMES(Bf16Method, native, widened)

// Seconds that each method takes for some products of a training step's shapes, on one thread;
// measured anew by each call, in a fraction of a second. avx512_bf16 runs at half the rate of f32
// on Intel's cores without AMX, and at up to twice that rate on other processors.
MethodSeconds<Bf16Method> measure_bf16_methods();

// The method of this process: the one that was set, else the faster one by a measurement at the
// first call.
Bf16Method bf16_method();
// While no other thread multiplies. Throws Error for `native` where the processor has no bf16
// products.
void set_bf16_method(Bf16Method method);

}  // namespace switchyard
