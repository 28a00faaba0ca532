#include "kernels/decode/attend_cached.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/cuda_limits.h"
#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
// Rows that a thread loads ahead, before it uses the first one.
constexpr int kInFlight = 2;
// Query heads of a group that share a row in registers, at most. The blocks of a larger group read
// the same rows at the same time, and so from memory only once.
constexpr int kTogether = 4;

struct Problem {
  int64_t heads, kv_heads, max_len, head_dim, stride, keys_per_split, splits;
  int64_t parts;  // of a group: blocks that share the heads of a split

  float scale;
  const int32_t *positions, *counts;  // positions may be null: 0, 1, 2, ...
  const float* log_weights;           // [batch * heads, stride]; null: zero

  // The splits of a sequence that have keys.
  __device__ int64_t splits_of(int64_t sequence) const {
    return (counts[sequence] + keys_per_split - 1) / keys_per_split;
  }
};

// How the lanes of a warp share rows: kRowLanes lanes per row, each with kPerLane of its elements.
// With 16-byte accesses a lane's elements are neighbours, else they are kRowLanes apart.
template <int kLanesOfRow, int kElements, bool kAsVectors>
struct RowShape {
  static constexpr int kRowLanes = kLanesOfRow, kPerLane = kElements;
  static constexpr bool kVectors = kAsVectors;
  static constexpr int kRows = kWarpSize / kRowLanes;  // of a warp at a time

  static __device__ int64_t element(int lane, int i) {
    return kVectors ? lane * kPerLane + i : lane + i * kRowLanes;
  }

  template <class T>
  static __device__ void load(const T* row, int lane, int64_t head_dim, float (&out)[kPerLane]) {
    if constexpr (kVectors) {
      load_floats(row + lane * kPerLane, out);
    } else {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int64_t d = element(lane, i);
        out[i] = d < head_dim ? static_cast<float>(row[d]) : 0.0f;
      }
    }
  }
};

// A record of head_dim + 2 floats is a partial result of a query: the weighted sum of values, the
// largest score, and the sum of the weights.
//
// Adds `n` records of one query into `out`, in their order.
__device__ void merge_records(const float* records, int64_t n, int64_t head_dim, float* out) {
  const int64_t record = head_dim + 2;
  float best = -INFINITY, all = 0.0f;
  for (int64_t i = 0; i < n; ++i) best = fmaxf(best, records[i * record + head_dim]);
  const float shift = best == -INFINITY ? 0.0f : best;  // -INFINITY: there is no key
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

// The running softmax of kHeads query heads over the keys of one group of lanes.
template <class Shape, int kHeads>
struct HeadsState {
  float query[kHeads][Shape::kPerLane], sums[kHeads][Shape::kPerLane];
  float largest[kHeads], total[kHeads];

  template <class T>
  __device__ void begin(const T* q, int lane, int64_t head_dim) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      Shape::load(q + h * head_dim, lane, head_dim, query[h]);
#pragma unroll
      for (int i = 0; i < Shape::kPerLane; ++i) sums[h][i] = 0.0f;
      largest[h] = -INFINITY;
      total[h] = 0.0f;
    }
  }

  // Keys that are not `here` get a weight of zero. Every lane of the warp must call it.
  //   log_weights  of the first query head, `p.stride` values per head; null: zero
  //   keys         indices into a row of them
  __device__ void add(const float (&k)[kInFlight][Shape::kPerLane],
                      const float (&v)[kInFlight][Shape::kPerLane], const bool (&here)[kInFlight],
                      const Problem& p, const float* log_weights,
                      const int64_t (&keys)[kInFlight]) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float score[kInFlight], best = largest[h];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < Shape::kPerLane; ++i) dot += query[h][i] * k[u][i];
#pragma unroll
        for (int offset = Shape::kRowLanes / 2; offset > 0; offset /= 2) {
          dot += __shfl_xor_sync(kAllLanes, dot, offset);
        }
        const float added = log_weights ? log_weights[h * p.stride + keys[u]] : 0.0f;
        score[u] = here[u] ? p.scale * dot + added : -INFINITY;
        best = fmaxf(best, score[u]);
      }
      const float shift = best == -INFINITY ? 0.0f : best;  // -INFINITY: there was no key yet
      const float shrink = expf(largest[h] - shift);
      largest[h] = best;
      total[h] *= shrink;
#pragma unroll
      for (int i = 0; i < Shape::kPerLane; ++i) sums[h][i] *= shrink;
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const float weight = expf(score[u] - shift);
        total[h] += weight;
#pragma unroll
        for (int i = 0; i < Shape::kPerLane; ++i) sums[h][i] += weight * v[u][i];
      }
    }
  }
};

// Attends from query heads [head, head + kHeads) to the keys of this block's split.
//   records  [kWarps * Shape::kRows, head_dim + 2] in shared memory
template <class Shape, int kHeads, class T>
__device__ void attend_split(const Problem& p, int64_t split, int64_t head, const T* q,
                             const T* k_cache, const T* v_cache, float* records, float* partial) {
  constexpr int kStride = kWarps * Shape::kRows;  // keys that the block takes at a time
  const int64_t b = blockIdx.z, row = b * p.kv_heads + blockIdx.y, record = p.head_dim + 2;
  const int group = static_cast<int>(threadIdx.x) / Shape::kRowLanes;  // of lanes that share rows
  const int lane = static_cast<int>(threadIdx.x) % Shape::kRowLanes;
  const int64_t begin = split * p.keys_per_split;
  const int64_t end = min(int64_t{p.counts[b]}, begin + p.keys_per_split);
  const float* log_weights = p.log_weights ? p.log_weights + head * p.stride : nullptr;
  HeadsState<Shape, kHeads> state;
  state.begin(q + head * p.head_dim, lane, p.head_dim);
  for (int64_t first = begin; first < end; first += kInFlight * kStride) {
    float k[kInFlight][Shape::kPerLane], v[kInFlight][Shape::kPerLane];
    bool here[kInFlight];
    int64_t keys[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int64_t key = first + u * kStride + group;
      here[u] = key < end;
      keys[u] = here[u] ? key : first;
      const int64_t position = p.positions ? p.positions[row * p.stride + keys[u]] : keys[u];
      const int64_t at = (row * p.max_len + position) * p.head_dim;
      Shape::load(k_cache + at, lane, p.head_dim, k[u]);
      Shape::load(v_cache + at, lane, p.head_dim, v[u]);
    }
    state.add(k, v, here, p, log_weights, keys);
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    float* mine = records + group * record;
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      const int64_t d = Shape::element(lane, i);
      if (d < p.head_dim) mine[d] = state.sums[h][i];
    }
    if (lane == 0) {
      mine[p.head_dim] = state.largest[h];
      mine[p.head_dim + 1] = state.total[h];
    }
    __syncthreads();  // every record is complete
    merge_records(records, kStride, p.head_dim, partial + ((head + h) * p.splits + split) * record);
    __syncthreads();  // the records have been read
  }
}

// Block (split and part of the group, key/value head, sequence). The parts of a group differ by one
// head at most.
//   partial  [batch, heads, splits, head_dim + 2] f32
template <class Shape, class T>
__global__ void __launch_bounds__(kThreads)
    attend_cached_kernel(Problem p, const T* q, const T* k_cache, const T* v_cache,
                         float* partial) {
  float* records = dynamic_shared<float>();
  const int64_t group = p.heads / p.kv_heads, split = blockIdx.x / p.parts;
  if (split >= p.splits_of(blockIdx.z)) return;  // The cache is longer than what it holds.
  const int64_t part = blockIdx.x % p.parts, begin = part * group / p.parts;
  const int64_t head = (blockIdx.z * p.kv_heads + blockIdx.y) * group + begin;
  const auto attend = [&]<int kHeads>() {
    attend_split<Shape, kHeads>(p, split, head, q, k_cache, v_cache, records, partial);
  };
  static_assert(kTogether == 4);
  switch ((part + 1) * group / p.parts - begin) {
    case 4:
      return attend.template operator()<4>();
    case 3:
      return attend.template operator()<3>();
    case 2:
      return attend.template operator()<2>();
    default:
      return attend.template operator()<1>();
  }
}

// One block per (sequence, head).
//   shared  [head_dim + 2]
template <class T>
__global__ void merge_splits_kernel(Problem p, const float* partial, T* out) {
  float* merged = dynamic_shared<float>();
  merge_records(partial + blockIdx.x * p.splits * (p.head_dim + 2),
                p.splits_of(blockIdx.x / p.heads), p.head_dim, merged);
  __syncthreads();  // the sum of the weights is visible below
  for (int64_t d = threadIdx.x; d < p.head_dim; d += kThreads) {
    out[blockIdx.x * p.head_dim + d] = from_float<T>(merged[d] / merged[p.head_dim + 1]);
  }
}

// Calls body.operator()<Shape>().
template <class T, class Body>
void dispatch_row_shape(int64_t head_dim, bool vectors, const Body& body) {
  require(head_dim <= cuda_limits::kHeadDim, "CUDA attends with heads of up to {} elements, not {}",
          cuda_limits::kHeadDim, head_dim);
  constexpr int kVector = 16 / sizeof(T);
  if (vectors && head_dim == 64)
    return body.template operator()<RowShape<64 / kVector, kVector, true>>();
  if (vectors && head_dim == 128) {
    return body.template operator()<RowShape<128 / kVector, kVector, true>>();
  }
  if (vectors && head_dim == 256) return body.template operator()<RowShape<kWarpSize, 8, true>>();
  if (head_dim <= 32) return body.template operator()<RowShape<kWarpSize, 1, false>>();
  if (head_dim <= 64) return body.template operator()<RowShape<kWarpSize, 2, false>>();
  if (head_dim <= 128) return body.template operator()<RowShape<kWarpSize, 4, false>>();
  body.template operator()<RowShape<kWarpSize, 8, false>>();
}

}  // namespace

void cuda::attend_cached(Stream& stream, Workspace& workspace, ConstTensorView q,
                         ConstTensorView k_cache, ConstTensorView v_cache,
                         ConstTensorView positions, ConstTensorView counts,
                         ConstTensorView log_weights, float scale, TensorView out) {
  const int64_t batch = q.dim(0), heads = q.dim(1), head_dim = q.dim(2);
  const int64_t most = positions ? positions.dim(2) : k_cache.dim(2);
  WorkspaceScope scope(workspace);
  const TensorView splits = attend_cached_scratch(workspace, q, k_cache, positions);
  float* partial = splits.data<float>();
  const Problem p{.heads = heads,
                  .kv_heads = k_cache.dim(1),
                  .max_len = k_cache.dim(2),
                  .head_dim = head_dim,
                  .stride = most,
                  .keys_per_split = positions ? kListedKeysPerSplit : kKeysPerSplit,
                  .splits = splits.dim(2),
                  .parts = ceil_div(heads / k_cache.dim(1), kTogether),
                  .scale = scale,
                  .positions = positions ? positions.data<int32_t>() : nullptr,
                  .counts = counts.data<int32_t>(),
                  .log_weights = log_weights ? log_weights.data<float>() : nullptr};
  const auto record_bytes = static_cast<size_t>(head_dim + 2) * sizeof(float);
  const dim3 grid(static_cast<unsigned int>(p.splits * p.parts),
                  static_cast<unsigned int>(p.kv_heads), static_cast<unsigned int>(batch));
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    const T *queries = q.data<T>(), *keys = k_cache.data<T>(), *values = v_cache.data<T>();
    dispatch_row_shape<T>(head_dim, allow_vectors(queries, keys, values), [&]<class Shape>() {
      launch(attend_cached_kernel<Shape, T>, grid, kThreads, kWarps * Shape::kRows * record_bytes,
             stream, p, queries, keys, values, partial);
    });
    launch(merge_splits_kernel<T>, static_cast<unsigned int>(batch * heads), kThreads, record_bytes,
           stream, p, partial, out.data<T>());
  });
}

}  // namespace switchyard
