#pragma once

#include <cstdint>
#include <optional>

#include "kernels/basic/activation.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/methods.h"

namespace switchyard {

// How a CUDA device computes the bf16 products of all experts (grouped_linear_*), and the
// activation between them.
enum class ExpertProductMethod {
  cublas_lt,  // one call of cuBLASLt, whose sizes the device reads
  cutlass,    // the same, but those next to the activation by CUTLASS, together with the activation
  cublas,     // one cublasGemmGroupedBatchedEx; gradients of weights, which are f32, as in streams
  streams,    // a product per expert, in several streams at a time
};
SWITCHYARD_ENUM_NAMES(ExpertProductMethod, cublas_lt, cutlass, cublas, streams)

// Whether this build, its libraries and the CUDA device have the method.
bool has_expert_product_method(Device device, ExpertProductMethod method);

// What a rank's experts compute in one layer and micro-batch.
struct ExpertProducts {
  int64_t experts = 0;
  int64_t rows = 0;   // of all experts together
  int64_t width = 0;  // of their input and output
  int64_t ffn_hidden = 0;
  Activation activation = Activation::swiglu;
};

// Seconds on the stream's CUDA device for the forward and the backward pass, in bf16, with the same
// number of rows for each expert. A method that cannot compute them, such as cublas_lt where rows
// are not aligned to 16 bytes, or whose results are not those of `streams` but for rounding, takes
// infinitely long; all but `streams` do if the device has no memory for the measurement.
MethodSeconds<ExpertProductMethod> measure_expert_product_methods(Stream& stream,
                                                                  const ExpertProducts& products);

// The method of this process for bf16 products. Until one is set, and for products that cublas_lt
// does not take, `cublas` computes small ones and `streams` large ones, as always in f32.
std::optional<ExpertProductMethod> expert_product_method();
// While no other thread multiplies.
void set_expert_product_method(std::optional<ExpertProductMethod> method);

}  // namespace switchyard
