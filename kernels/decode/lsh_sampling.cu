#include "kernels/decode/lsh_sampling.h"

#include <cmath>

#include "kernels/basic/elementwise.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/inline/lsh_probability.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

struct Problem {
  int64_t heads, kv_heads, max_len, head_dim, words;
  LshTables tables;
  const int32_t *q_codes, *codes, *lengths;
  const float* mean;
};

// In how many tables the codes share the bucket.
__device__ int collisions(const int32_t* x, const int32_t* y, int64_t tables) {
  int count = 0;
  for (int64_t t = 0; t < tables; ++t) {
    const auto differ = static_cast<uint32_t>(x[t / 2] ^ y[t / 2]);
    count += (t % 2 == 0 ? differ & 0xffffu : differ >> 16) == 0;
  }
  return count;
}

// The probability that one hash bit of q and k - mean agrees: 1 - theta / pi.
template <class T>
__device__ double agreement(const T* q, const T* k, const float* mean, int64_t head_dim) {
  constexpr double kPi = 3.14159265358979323846;
  double product = 0.0, q_squared = 0.0, k_squared = 0.0;
  for (int64_t i = 0; i < head_dim; ++i) {
    const double x = static_cast<float>(q[i]);
    const double y = static_cast<double>(static_cast<float>(k[i])) - mean[i];
    product += x * y;
    q_squared += x * x;
    k_squared += y * y;
  }
  const double lengths = sqrt(q_squared * k_squared);
  const double cosine = lengths > 0.0 ? fmin(fmax(product / lengths, -1.0), 1.0) : 0.0;
  return 1.0 - acos(cosine) / kPi;
}

// A thread weights one key for one query head. Few keys share two buckets, so few threads read
// more than a code.
template <class T>
__global__ void lsh_log_weights_kernel(Problem p, const T* q, const T* k_cache,
                                       float* log_weights) {
  const int64_t head = int64_t{blockIdx.z} * p.heads + blockIdx.y;
  const int64_t row = head / (p.heads / p.kv_heads);
  const int64_t position = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (position >= p.lengths[blockIdx.z]) return;

  float weight = 0.0f;
  if (position >= p.tables.begin && position < p.tables.end) {
    const int64_t key = row * p.max_len + position;
    weight = -INFINITY;
    if (collisions(p.q_codes + head * p.words, p.codes + key * p.words, p.tables.tables) >= 2) {
      const double bit = agreement(q + head * p.head_dim, k_cache + key * p.head_dim,
                                   p.mean + row * p.head_dim, p.head_dim);
      const double u = lsh_probability(bit, p.tables.bits, p.tables.tables);
      weight = static_cast<float>(-log(u + 1e-4));
    }
  }
  log_weights[head * p.max_len + position] = weight;
}

struct Lists {
  int64_t group, kv_heads, max_len, stride;
  const int32_t* lengths;
};

// One block per (sequence, key/value head); it appends the listed ones of kThreads positions at a
// time.
__global__ void list_weighted_kernel(Lists l, const float* log_weights, int32_t* indices,
                                     int32_t* counts, float* selected) {
  __shared__ int of_warps[kWarps];
  const int64_t row = int64_t{blockIdx.y} * l.kv_heads + blockIdx.x;
  const int64_t length = l.lengths[blockIdx.y];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const float* weights = log_weights + row * l.group * l.max_len;
  float* out = selected + row * l.group * l.stride;
  int32_t* list = indices + row * l.stride;
  int64_t count = 0;
  for (int64_t first = 0; first < length; first += kThreads) {
    const int64_t p = first + threadIdx.x;
    bool listed = false;
    for (int64_t g = 0; g < l.group && p < length; ++g) {
      listed = listed || weights[g * l.max_len + p] != -INFINITY;
    }
    const uint32_t votes = __ballot_sync(kAllLanes, listed);
    if (lane == 0) of_warps[warp] = __popc(votes);
    __syncthreads();  // every warp's number is visible below
    int64_t at = count + __popc(votes & ((1u << lane) - 1u));
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) at += of_warps[w];
      count += of_warps[w];
    }
    if (listed) {
      list[at] = static_cast<int32_t>(p);
      for (int64_t g = 0; g < l.group; ++g) out[g * l.stride + at] = weights[g * l.max_len + p];
    }
    __syncthreads();  // the numbers have been read
  }
  for (int64_t i = count + threadIdx.x; i < l.stride; i += kThreads) {
    list[i] = 0;
    for (int64_t g = 0; g < l.group; ++g) out[g * l.stride + i] = -INFINITY;
  }
  if (threadIdx.x == 0) atomicMax(counts + blockIdx.y, static_cast<int>(count));
}

}  // namespace

void cuda::lsh_log_weights(Stream& stream, ConstTensorView q, ConstTensorView q_codes,
                           ConstTensorView k_cache, ConstTensorView mean, ConstTensorView codes,
                           ConstTensorView lengths, const LshTables& tables,
                           TensorView log_weights) {
  const Problem p{.heads = q.dim(1),
                  .kv_heads = k_cache.dim(1),
                  .max_len = k_cache.dim(2),
                  .head_dim = q.dim(2),
                  .words = q_codes.dim(2),
                  .tables = tables,
                  .q_codes = q_codes.data<int32_t>(),
                  .codes = codes.data<int32_t>(),
                  .lengths = lengths.data<int32_t>(),
                  .mean = mean.data<float>()};
  const dim3 grid(num_blocks(p.max_len, kThreads), static_cast<unsigned int>(p.heads),
                  static_cast<unsigned int>(q.dim(0)));
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    launch(lsh_log_weights_kernel<T>, grid, kThreads, 0, stream, p, q.data<T>(), k_cache.data<T>(),
           log_weights.data<float>());
  });
}

void cuda::list_weighted(Stream& stream, ConstTensorView log_weights, ConstTensorView lengths,
                         TensorView indices, TensorView counts, TensorView selected) {
  const Lists l{.group = log_weights.dim(1) / indices.dim(1),
                .kv_heads = indices.dim(1),
                .max_len = log_weights.dim(2),
                .stride = indices.dim(2),
                .lengths = lengths.data<int32_t>()};
  switchyard::fill_zero(stream, counts);
  const dim3 grid(static_cast<unsigned int>(l.kv_heads), static_cast<unsigned int>(indices.dim(0)));
  launch(list_weighted_kernel, grid, kThreads, 0, stream, l, log_weights.data<float>(),
         indices.data<int32_t>(), counts.data<int32_t>(), selected.data<float>());
}

}  // namespace switchyard
