#pragma once

#include <cstdint>
#include <functional>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/methods.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// For measurements on a CUDA device.

// Normal values. With zeros the device would use less power and run at higher clocks.
Tensor random_on_device(Stream& stream, const Shape& shape, DType dtype, uint64_t seed);

// The time of one run, the best of `tries` after one that does not count. Each try times `runs`
// together, so that the device does not wait for the host.
double best_seconds_of_device(Stream& stream, int tries, int runs,
                              const std::function<void()>& run);

// What `measure` returns; where the device has no memory for a measurement, as beside a model that
// just fits, only the method that needs no library.
template <class Method, class Measure>
MethodSeconds<Method> measured_or_only(Method plain, const Measure& measure) {
  try {
    return measure();
  } catch (const OutOfMemory&) {
    return MethodSeconds<Method>::only(plain);
  }
}

}  // namespace switchyard
