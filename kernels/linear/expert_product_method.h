#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/runtime/device.h"
#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/methods.h"

namespace switchyard {

// How a CUDA device computes the bf16 products of all experts (grouped_linear_*).
enum class ExpertProductMethod {
  cublas_lt,  // one call of cuBLASLt, whose sizes the device reads
  cublas,     // one cublasGemmGroupedBatchedEx; gradients of weights, which are f32, as in streams
  streams,    // a product per expert, in several streams at a time
};
SWITCHYARD_ENUM_NAMES(ExpertProductMethod, cublas_lt, cublas, streams)

// The products of a rank's experts in one layer and micro-batch.
struct ExpertProducts {
  struct Map {
    int64_t in, out;
  };

  int64_t experts = 0;
  int64_t rows = 0;       // of all experts together
  std::vector<Map> maps;  // one after the other
};

// Seconds on the stream's CUDA device for the forward pass and the gradients of inputs and weights,
// in bf16, with the same number of rows for each expert. A method that cannot compute them, such as
// cublas_lt where rows are not aligned to 16 bytes, takes infinitely long; all but `streams` do if
// the device has no memory for the measurement.
MethodSeconds<ExpertProductMethod> measure_expert_product_methods(Stream& stream,
                                                                  const ExpertProducts& products);

// The method of this process for bf16 products. Until one is set, and for products that cublas_lt
// does not take, `cublas` computes small ones and `streams` large ones, as always in f32.
std::optional<ExpertProductMethod> expert_product_method();
// While no other thread multiplies.
void set_expert_product_method(std::optional<ExpertProductMethod> method);

}  // namespace switchyard
