#include "kernels/vocabulary/cross_entropy.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/inline/vector_math.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

// One block per token, because rows of a vocabulary are long.
constexpr int kThreads = 512;
constexpr int kPerThread = 4;

// The greatest of some logits, and the sum of exp(logit - greatest).
struct Partition {
  float largest = -INFINITY, sum = 0.0f;

  template <int kSize>
  __device__ void add(const float (&logits)[kSize]) {
    float greatest = largest;
#pragma unroll
    for (int i = 0; i < kSize; ++i) greatest = fmaxf(greatest, logits[i]);
    if (greatest > largest) refer_to(greatest);  // rarely true after the first calls
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      sum += logits[i] == -INFINITY ? 0.0f : fast_exp(logits[i] - largest);
    }
  }
  __device__ void refer_to(float greatest) {
    if (greatest > largest) sum *= fast_exp(largest - greatest);
    largest = greatest;
  }
};

// Makes one pass over a row. max ignores NaN, but the sum includes it.
template <int kSize>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const float* logits, const int32_t* targets, IdRange ids, int64_t vocab,
                   float* row_max, float* sum_exp, float* target_logit) {
  __shared__ float largest_scratch[kWarpSize], sum_scratch[kWarpSize];
  const int64_t token = blockIdx.x;
  const float* row = logits + token * vocab;
  Partition mine;
#pragma unroll 2
  for (int64_t begin = threadIdx.x * kSize; begin < vocab; begin += kThreads * kSize) {
    float values[kSize];
    load_floats<kSize>(row + begin, values);
    mine.add(values);
  }
  const float largest = block_max(mine.largest, largest_scratch);
  mine.refer_to(largest);
  const float total = block_sum(mine.sum, sum_scratch);
  if (threadIdx.x != 0) return;
  row_max[token] = largest;
  sum_exp[token] = total;
  const int32_t target = targets[token];
  target_logit[token] = ids.has(target, vocab) ? row[target - ids.first] : 0.0f;
}

__global__ void rescale_kernel(const float* local_max, const float* row_max, int64_t tokens,
                               float* sum_exp) {
  const int64_t t = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (t < tokens) sum_exp[t] *= expf(local_max[t] - row_max[t]);
}

__global__ void losses_kernel(const int32_t* targets, const float* row_max, const float* sum_exp,
                              const float* target_logit, int64_t tokens, float* losses) {
  const int64_t t = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (t >= tokens) return;
  // The difference is computed first: the two values are close if the loss is small.
  losses[t] = targets[t] >= 0 ? logf(sum_exp[t]) + (row_max[t] - target_logit[t]) : 0.0f;
}

// dlogits may be logits: every element is read and written by one thread.
template <int kSize, class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const float* logits, const int32_t* targets, IdRange ids, int64_t vocab,
                    const float* row_max, const float* sum_exp, float scale, T* dlogits) {
  const int64_t token = blockIdx.x, id = targets[token];
  const int64_t target = ids.has(id, vocab) ? id - ids.first : -1;
  const bool counts = targets[token] >= 0;
  const float largest = row_max[token], by_sum = counts ? scale / sum_exp[token] : 0.0f;
  for (int64_t begin = threadIdx.x * kSize; begin < vocab; begin += kThreads * kSize) {
    float values[kSize];
    load_floats<kSize>(logits + token * vocab + begin, values);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float prob = by_sum * fast_exp(values[i] - largest);
      values[i] = !counts ? 0.0f : begin + i == target ? prob - scale : prob;
    }
    store_floats<kSize>(dlogits + token * vocab + begin, values);
  }
}

__global__ void mask_columns_kernel(int64_t vocab, int64_t columns, int64_t n, float* logits) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, masked = columns - vocab;
  if (i < n) logits[i / masked * columns + vocab + i % masked] = -INFINITY;
}

template <class... Pointers>
bool allow_wide(int64_t vocab, const Pointers*... addresses) {
  return vocab % kPerThread == 0 && allow_vectors(addresses...);
}

}  // namespace

void cuda::cross_entropy_forward(Stream& stream, ConstTensorView logits, ConstTensorView targets,
                                 IdRange ids, TensorView row_max, TensorView sum_exp,
                                 TensorView target_logit) {
  const bool wide = allow_wide(logits.dim(1), logits.raw());
  launch(wide ? forward_kernel<kPerThread> : forward_kernel<1>,
         static_cast<unsigned int>(logits.dim(0)), kThreads, 0, stream, logits.data<float>(),
         targets.data<int32_t>(), ids, logits.dim(1), row_max.data<float>(), sum_exp.data<float>(),
         target_logit.data<float>());
}

void cuda::cross_entropy_rescale(Stream& stream, ConstTensorView local_max, ConstTensorView row_max,
                                 TensorView sum_exp) {
  const int64_t tokens = local_max.num_elements();
  launch(rescale_kernel, num_blocks(tokens, kThreads), kThreads, 0, stream, local_max.data<float>(),
         row_max.data<float>(), tokens, sum_exp.data<float>());
}

void cuda::cross_entropy_losses(Stream& stream, ConstTensorView targets, ConstTensorView row_max,
                                ConstTensorView sum_exp, ConstTensorView target_logit,
                                TensorView losses) {
  const int64_t tokens = targets.num_elements();
  launch(losses_kernel, num_blocks(tokens, kThreads), kThreads, 0, stream, targets.data<int32_t>(),
         row_max.data<float>(), sum_exp.data<float>(), target_logit.data<float>(), tokens,
         losses.data<float>());
}

void cuda::cross_entropy_backward(Stream& stream, ConstTensorView logits, ConstTensorView targets,
                                  IdRange ids, ConstTensorView row_max, ConstTensorView sum_exp,
                                  float scale, TensorView dlogits) {
  dispatch_compute_dtype(dlogits.dtype(), [&]<class T>() {
    T* out = dlogits.data<T>();
    const bool wide = allow_wide(logits.dim(1), logits.raw(), out);
    launch(wide ? backward_kernel<kPerThread, T> : backward_kernel<1, T>,
           static_cast<unsigned int>(logits.dim(0)), kThreads, 0, stream, logits.data<float>(),
           targets.data<int32_t>(), ids, logits.dim(1), row_max.data<float>(),
           sum_exp.data<float>(), scale, out);
  });
}

void cuda::mask_columns(Stream& stream, int64_t vocab, TensorView logits) {
  const int64_t columns = logits.dim(1), n = logits.dim(0) * (columns - vocab);
  launch(mask_columns_kernel, num_blocks(n, kThreads), kThreads, 0, stream, vocab, columns, n,
         logits.data<float>());
}

}  // namespace switchyard
