#include "kernels/gather_attention.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int64_t kKeysPerSplit = 256;
constexpr int64_t kMaxHeadDim = 256;

struct Problem {
  int64_t heads, kv_heads, max_len, head_dim, stride, splits;
  float scale;
  const int32_t *indices, *counts;
};

// What a warp, a block or all blocks know of a query: the weighted sum of values, the largest
// score, and the sum of the weights; records of head_dim + 2 floats.
//
// Sums `n` records of one query into `out`, in their order.
__device__ void merge_records(const float* records, int64_t n, int64_t head_dim, float* out) {
  const int64_t record = head_dim + 2;
  float best = -INFINITY, all = 0.0f;
  for (int64_t i = 0; i < n; ++i) best = fmaxf(best, records[i * record + head_dim]);
  const float shift = best == -INFINITY ? 0.0f : best;  // without any key
  for (int64_t i = 0; i < n; ++i) {
    all += records[i * record + head_dim + 1] * expf(records[i * record + head_dim] - shift);
  }
  for (int64_t d = threadIdx.x; d < head_dim; d += kThreads) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
      sum += records[i * record + d] * expf(records[i * record + head_dim] - shift);
    }
    out[d] = sum;
  }
  if (threadIdx.x == 0) {
    out[head_dim] = best;
    out[head_dim + 1] = all;
  }
}

// Block (split, key/value head, sequence): attention of the group's queries to the keys of a part
// of the list. A warp takes a key at a time, its lanes along the channels.
//   partial  [batch, heads, splits, head_dim + 2] f32
template <int kPerLane, class T>
__global__ void __launch_bounds__(kThreads)
    gather_split_kernel(Problem p, const T* q, const T* k_cache, const T* v_cache, float* partial) {
  float* warp_records = dynamic_shared<float>();  // [warps, head_dim + 2]
  const int64_t b = blockIdx.z, group = p.heads / p.kv_heads, record = p.head_dim + 2;
  const int64_t row = b * p.kv_heads + blockIdx.y;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t begin = blockIdx.x * kKeysPerSplit;
  const int64_t end = min(int64_t{p.counts[b]}, begin + kKeysPerSplit);
  for (int64_t head = row * group; head < (row + 1) * group; ++head) {
    float query[kPerLane], sums[kPerLane] = {}, largest = -INFINITY, total = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int64_t d = lane + i * kWarpSize;
      query[i] = d < p.head_dim ? static_cast<float>(q[head * p.head_dim + d]) : 0.0f;
    }
    for (int64_t i_key = begin + warp; i_key < end; i_key += kWarps) {
      const int64_t at = (row * p.max_len + p.indices[row * p.stride + i_key]) * p.head_dim;
      float dot = 0.0f, value[kPerLane];
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int64_t d = lane + i * kWarpSize;
        const bool is_here = d < p.head_dim;
        dot += is_here ? query[i] * static_cast<float>(k_cache[at + d]) : 0.0f;
        value[i] = is_here ? static_cast<float>(v_cache[at + d]) : 0.0f;
      }
      const float score = p.scale * warp_sum(dot);
      const float best = fmaxf(largest, score);
      const float shrink = expf(largest - best), weight = expf(score - best);
      total = total * shrink + weight;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) sums[i] = sums[i] * shrink + weight * value[i];
      largest = best;
    }
    float* mine = warp_records + warp * record;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane + i * kWarpSize < p.head_dim) mine[lane + i * kWarpSize] = sums[i];
    }
    if (lane == 0) {
      mine[p.head_dim] = largest;
      mine[p.head_dim + 1] = total;
    }
    __syncthreads();  // every warp's record is complete
    merge_records(warp_records, kWarps, p.head_dim,
                  partial + (head * p.splits + blockIdx.x) * record);
    __syncthreads();  // the records have been read
  }
}

// One block per (sequence, head).
//   shared  [head_dim + 2]
template <class T>
__global__ void gather_merge_kernel(Problem p, const float* partial, T* out) {
  float* merged = dynamic_shared<float>();
  merge_records(partial + blockIdx.x * p.splits * (p.head_dim + 2), p.splits, p.head_dim, merged);
  __syncthreads();  // the sum of the weights is there
  for (int64_t d = threadIdx.x; d < p.head_dim; d += kThreads) {
    out[blockIdx.x * p.head_dim + d] = from_float<T>(merged[d] / merged[p.head_dim + 1]);
  }
}

// Calls body.operator()<kPerLane>().
template <class Body>
void dispatch_head_dim(int64_t head_dim, const Body& body) {
  require(head_dim <= kMaxHeadDim, "CUDA attends with heads of up to {} elements, not {}",
          kMaxHeadDim, head_dim);
  if (head_dim <= 32) return body.template operator()<1>();
  if (head_dim <= 64) return body.template operator()<2>();
  if (head_dim <= 128) return body.template operator()<4>();
  body.template operator()<8>();
}

}  // namespace

void cuda::gather_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                            ConstTensorView k_cache, ConstTensorView v_cache,
                            ConstTensorView indices, ConstTensorView counts, float scale,
                            TensorView out) {
  const int64_t batch = q.dim(0), heads = q.dim(1), head_dim = q.dim(2);
  const Problem p{.heads = heads,
                  .kv_heads = k_cache.dim(1),
                  .max_len = k_cache.dim(2),
                  .head_dim = head_dim,
                  .stride = indices.dim(2),
                  .splits = (indices.dim(2) + kKeysPerSplit - 1) / kKeysPerSplit,
                  .scale = scale,
                  .indices = indices.data<int32_t>(),
                  .counts = counts.data<int32_t>()};
  WorkspaceScope scope(workspace);
  float* partial = workspace.take({batch, heads, p.splits, head_dim + 2}, DType::f32).data<float>();
  const auto record_bytes = static_cast<size_t>(head_dim + 2) * sizeof(float);
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    dispatch_head_dim(head_dim, [&]<int kPerLane>() {
      launch(gather_split_kernel<kPerLane, T>,
             dim3(static_cast<unsigned int>(p.splits), static_cast<unsigned int>(p.kv_heads),
                  static_cast<unsigned int>(batch)),
             kThreads, kWarps * record_bytes, stream, p, q.data<T>(), k_cache.data<T>(),
             v_cache.data<T>(), partial);
    });
    launch(gather_merge_kernel<T>, static_cast<unsigned int>(batch * heads), kThreads, record_bytes,
           stream, p, partial, out.data<T>());
  });
}

}  // namespace switchyard
