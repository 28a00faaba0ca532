#include "kernels/cross_entropy.h"

#include "kernels/check.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/dispatch.h"
#include "kernels/vector_math.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

// One block per token. Rows of a vocabulary are long.
constexpr int kThreads = 512;
constexpr int kPerThread = 4;

// Calls body(index, logit) for this thread's elements of a row.
template <int kSize, class Body>
__device__ void for_each_logit(const float* row, int64_t vocab, const Body& body) {
  for (int64_t begin = threadIdx.x * kSize; begin < vocab; begin += kThreads * kSize) {
    float logits[kSize];
    load_floats<kSize>(row + begin, logits);
#pragma unroll
    for (int i = 0; i < kSize; ++i) body(begin + i, logits[i]);
  }
}

template <int kSize>
__global__ void __launch_bounds__(kThreads)
    row_max_kernel(const float* logits, int64_t vocab, float* row_max) {
  __shared__ float largest_scratch[kWarpSize], poison_scratch[kWarpSize];
  // A NaN must reach the loss; max would lose it.
  float largest = -INFINITY, poison = 0.0f;
  for_each_logit<kSize>(logits + blockIdx.x * vocab, vocab, [&](int64_t, float logit) {
    largest = fmaxf(largest, logit);
    poison += logit * 0.0f;
  });
  largest = block_max(largest, largest_scratch);
  poison = block_sum(poison, poison_scratch);
  if (threadIdx.x == 0) row_max[blockIdx.x] = poison != poison ? poison : largest;
}

template <int kSize>
__global__ void __launch_bounds__(kThreads)
    sums_kernel(const float* logits, const int32_t* targets, int64_t first_id, int64_t vocab,
                const float* row_max, float* sum_exp, float* target_logit) {
  __shared__ float scratch[kWarpSize];
  const int64_t token = blockIdx.x;
  const float* row = logits + token * vocab;
  const float largest = row_max[token];
  float total = 0.0f;
  for_each_logit<kSize>(row, vocab,
                        [&](int64_t, float logit) { total += fast_exp(logit - largest); });
  total = block_sum(total, scratch);
  if (threadIdx.x != 0) return;
  sum_exp[token] = total;
  const int64_t target = targets[token] - first_id;
  target_logit[token] = target >= 0 && target < vocab ? row[target] - largest : 0.0f;
}

__global__ void losses_kernel(const int32_t* targets, const float* sum_exp,
                              const float* target_logit, int64_t tokens, float* losses) {
  const int64_t t = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (t < tokens) losses[t] = targets[t] >= 0 ? logf(sum_exp[t]) - target_logit[t] : 0.0f;
}

// dlogits may be logits: every element is read and written by one thread.
template <int kSize, class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const float* logits, const int32_t* targets, int64_t first_id, int64_t vocab,
                    const float* row_max, const float* sum_exp, float scale, T* dlogits) {
  const int64_t token = blockIdx.x, target = targets[token] - first_id;
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

template <class... Pointers>
bool allow_wide(int64_t vocab, const Pointers*... addresses) {
  return vocab % kPerThread == 0 && allow_vectors(addresses...);
}

}  // namespace

void cuda::cross_entropy_row_max(Stream& stream, ConstTensorView logits, TensorView row_max) {
  const bool wide = allow_wide(logits.dim(1), logits.raw());
  launch(wide ? row_max_kernel<kPerThread> : row_max_kernel<1>,
         static_cast<unsigned int>(logits.dim(0)), kThreads, 0, stream, logits.data<float>(),
         logits.dim(1), row_max.data<float>());
}

void cuda::cross_entropy_sums(Stream& stream, ConstTensorView logits, ConstTensorView targets,
                              int64_t first_id, ConstTensorView row_max, TensorView sum_exp,
                              TensorView target_logit) {
  const bool wide = allow_wide(logits.dim(1), logits.raw());
  launch(wide ? sums_kernel<kPerThread> : sums_kernel<1>, static_cast<unsigned int>(logits.dim(0)),
         kThreads, 0, stream, logits.data<float>(), targets.data<int32_t>(), first_id,
         logits.dim(1), row_max.data<float>(), sum_exp.data<float>(), target_logit.data<float>());
}

void cuda::cross_entropy_losses(Stream& stream, ConstTensorView targets, ConstTensorView sum_exp,
                                ConstTensorView target_logit, TensorView losses) {
  const int64_t tokens = targets.num_elements();
  launch(losses_kernel, num_blocks(tokens, kThreads), kThreads, 0, stream, targets.data<int32_t>(),
         sum_exp.data<float>(), target_logit.data<float>(), tokens, losses.data<float>());
}

void cuda::cross_entropy_backward(Stream& stream, ConstTensorView logits, ConstTensorView targets,
                                  int64_t first_id, ConstTensorView row_max,
                                  ConstTensorView sum_exp, float scale, TensorView dlogits) {
  dispatch_compute_dtype(dlogits.dtype(), [&]<class T>() {
    T* out = dlogits.data<T>();
    const bool wide = allow_wide(logits.dim(1), logits.raw(), out);
    launch(wide ? backward_kernel<kPerThread, T> : backward_kernel<1, T>,
           static_cast<unsigned int>(logits.dim(0)), kThreads, 0, stream, logits.data<float>(),
           targets.data<int32_t>(), first_id, logits.dim(1), row_max.data<float>(),
           sum_exp.data<float>(), scale, out);
  });
}

}  // namespace switchyard
