#include "kernels/decode/received_attention.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

// The product of two rows, on every lane of the warp.
template <class T>
__device__ float warp_dot(const T* x, const T* y, int64_t n) {
  float sum = 0.0f;
  for (int64_t i = threadIdx.x % kWarpSize; i < n; i += kWarpSize) {
    sum += static_cast<float>(x[i]) * static_cast<float>(y[i]);
  }
  return warp_sum(sum);
}

struct Prompt {
  int64_t group, kv_heads, seq_len, head_dim, max_len, first_query;
  float scale;
};

// A warp sums what one key of one (sequence, key/value head) receives, query after query.
template <class T>
__global__ void received_attention_kernel(Prompt p, const T* q, const T* k, const float* lse,
                                          float* received) {
  const int64_t row = int64_t{blockIdx.z} * p.kv_heads + blockIdx.y;
  const int64_t key = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (key >= p.seq_len) return;  // the whole warp

  const T* of_key = k + (row * p.seq_len + key) * p.head_dim;
  const int64_t first = p.first_query > key ? p.first_query : key;  // earlier queries do not see it
  float total = 0.0f;
  for (int64_t head = row * p.group; head < (row + 1) * p.group; ++head) {
    for (int64_t t = first; t < p.seq_len; ++t) {
      const int64_t query = head * p.seq_len + t;
      total += expf(p.scale * warp_dot(q + query * p.head_dim, of_key, p.head_dim) - lse[query]);
    }
  }
  if (threadIdx.x % kWarpSize == 0) received[row * p.max_len + key] = total;
}

struct Eviction {
  int64_t group, kv_heads, max_len, head_dim, stride;
  const int32_t *indices, *counts, *lengths;
  float scale;
};

// Adds the softmax of one query over the listed keys to `sums`. Every thread of the block calls it.
//   weights, sums  [count]
template <class T>
__device__ void add_softmax(const Eviction& e, const T* query, const T* keys, const int32_t* list,
                            int64_t count, float* weights, float* sums, float* scratch) {
  for (int64_t i = threadIdx.x / kWarpSize; i < count; i += kWarps) {
    const float product = warp_dot(query, keys + list[i] * e.head_dim, e.head_dim);
    if (threadIdx.x % kWarpSize == 0) weights[i] = e.scale * product;
  }
  __syncthreads();  // every product is visible
  float greatest = -INFINITY, total = 0.0f;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) greatest = fmaxf(greatest, weights[i]);
  greatest = block_max(greatest, scratch);
  __syncthreads();  // the scratch of the maximum has been read
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total += expf(weights[i] - greatest);
  total = block_sum(total, scratch);
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    sums[i] += expf(weights[i] - greatest) / total;
  }
  __syncthreads();  // the scratch and the weights have been read
}

// One block per (sequence, key/value head).
//   scratch  [batch * kv_heads, 2, stride]
template <class T>
__global__ void evict_and_score_kernel(Eviction e, const T* q, const T* k_cache, float* scratch,
                                       float* scores) {
  __shared__ float of_warps[kWarps];
  const int64_t row = int64_t{blockIdx.y} * e.kv_heads + blockIdx.x;
  const int64_t count = e.counts[blockIdx.y], length = e.lengths[blockIdx.y];
  const int32_t* list = e.indices + row * e.stride;
  float *weights = scratch + row * 2 * e.stride, *sums = weights + e.stride;
  float* own = scores + row * e.max_len;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sums[i] = own[list[i]];
  for (int64_t head = row * e.group; head < (row + 1) * e.group; ++head) {
    add_softmax(e, q + head * e.head_dim, k_cache + row * e.max_len * e.head_dim, list, count,
                weights, sums, of_warps);
  }
  __syncthreads();  // every old score has been read
  for (int64_t p = threadIdx.x; p < length; p += kThreads) own[p] = -INFINITY;
  __syncthreads();  // all are evicted before the kept ones return
  for (int64_t i = threadIdx.x; i < count; i += kThreads) own[list[i]] = sums[i];
}

}  // namespace

void cuda::received_attention(Stream& stream, Workspace&, ConstTensorView q, ConstTensorView k,
                              ConstTensorView lse, int64_t first_query, float scale,
                              TensorView received) {
  const Prompt p{.group = q.dim(1) / k.dim(1),
                 .kv_heads = k.dim(1),
                 .seq_len = q.dim(2),
                 .head_dim = q.dim(3),
                 .max_len = received.dim(2),
                 .first_query = first_query,
                 .scale = scale};
  const dim3 grid(num_blocks(p.seq_len, kWarps), static_cast<unsigned int>(p.kv_heads),
                  static_cast<unsigned int>(q.dim(0)));
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    launch(received_attention_kernel<T>, grid, kThreads, 0, stream, p, q.data<T>(), k.data<T>(),
           lse.data<float>(), received.data<float>());
  });
}

void cuda::evict_and_score(Stream& stream, Workspace& workspace, ConstTensorView q,
                           ConstTensorView k_cache, ConstTensorView indices, ConstTensorView counts,
                           ConstTensorView lengths, float scale, TensorView scores) {
  WorkspaceScope scope(workspace);
  const TensorView scratch = evict_and_score_scratch(workspace, indices);
  const Eviction e{.group = q.dim(1) / k_cache.dim(1),
                   .kv_heads = k_cache.dim(1),
                   .max_len = k_cache.dim(2),
                   .head_dim = k_cache.dim(3),
                   .stride = indices.dim(2),
                   .indices = indices.data<int32_t>(),
                   .counts = counts.data<int32_t>(),
                   .lengths = lengths.data<int32_t>(),
                   .scale = scale};
  const dim3 grid(static_cast<unsigned int>(e.kv_heads), static_cast<unsigned int>(q.dim(0)));
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    launch(evict_and_score_kernel<T>, grid, kThreads, 0, stream, e, q.data<T>(), k_cache.data<T>(),
           scratch.data<float>(), scores.data<float>());
  });
}

}  // namespace switchyard
