#pragma once

#include <cstdint>
#include <optional>

#include "kernels/runtime/device.h"
#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/methods.h"

namespace switchyard {

// How a CUDA device computes attention in bf16. With documents and in f32 it is always `own`.
enum class AttentionMethod {
  own,    // the kernels of kernels/attention/
  cudnn,  // cuDNN's, for heads of up to 256 elements in multiples of 8
};
SWITCHYARD_ENUM_NAMES(AttentionMethod, own, cudnn)

// Attention of a rank in one layer and micro-batch.
struct AttentionWork {
  int64_t batch, heads, kv_heads, seq_len, head_dim;
};

// Seconds on the stream's CUDA device for both passes, in bf16. cuDNN takes infinitely long if it
// is not there, does not take the heads, or the device has no memory for the measurement.
MethodSeconds<AttentionMethod> measure_attention_methods(Stream& stream, const AttentionWork& work);

// The method of this process; `own` until one is set.
std::optional<AttentionMethod> attention_method();
// While no other thread computes attention.
void set_attention_method(std::optional<AttentionMethod> method);

}  // namespace switchyard
