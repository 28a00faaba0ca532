#include "kernels/decode/key_scores.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kKeysPerBlock = 128;

struct Problem {
  int64_t heads, kv_heads, max_len, width;
  const int32_t* lengths;
};

// A block scores consecutive keys of one (sequence, kv head). A warp scores one key at a time; its
// lanes read neighbouring channels.
//   shared  [width] the sum of the group's queries
template <class T>
__global__ void key_scores_kernel(Problem p, const T* q, const T* keys, float* scores) {
  float* sum = dynamic_shared<float>();
  const int64_t b = blockIdx.z, h = blockIdx.y, group = p.heads / p.kv_heads;
  const int64_t row = b * p.kv_heads + h, length = p.lengths[b];
  const int64_t begin = int64_t{blockIdx.x} * kKeysPerBlock;
  if (begin >= length) return;  // the whole block

  const T* queries = q + row * group * p.width;
  for (int64_t i = threadIdx.x; i < p.width; i += kThreads) {
    float total = 0.0f;
    for (int64_t g = 0; g < group; ++g) total += static_cast<float>(queries[g * p.width + i]);
    sum[i] = total;
  }
  __syncthreads();  // the sum is complete

  const int64_t end = begin + kKeysPerBlock < length ? begin + kKeysPerBlock : length;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int64_t key = begin + threadIdx.x / kWarpSize; key < end; key += kWarps) {
    const T* k = keys + (row * p.max_len + key) * p.width;
    float total = 0.0f;
    for (int64_t i = lane; i < p.width; i += kWarpSize) total += sum[i] * static_cast<float>(k[i]);
    total = warp_sum(total);
    if (lane == 0) scores[row * p.max_len + key] = total;
  }
}

}  // namespace

void cuda::key_scores(Stream& stream, ConstTensorView q, ConstTensorView keys,
                      ConstTensorView lengths, TensorView scores) {
  const Problem p{.heads = q.dim(1),
                  .kv_heads = keys.dim(1),
                  .max_len = keys.dim(2),
                  .width = keys.dim(3),
                  .lengths = lengths.data<int32_t>()};
  const dim3 grid(num_blocks(p.max_len, kKeysPerBlock), static_cast<unsigned int>(p.kv_heads),
                  static_cast<unsigned int>(q.dim(0)));
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    launch(key_scores_kernel<T>, grid, kThreads, static_cast<size_t>(p.width) * sizeof(float),
           stream, p, q.data<T>(), keys.data<T>(), scores.data<float>());
  });
}

}  // namespace switchyard
