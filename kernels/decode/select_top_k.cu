#include "kernels/decode/select_top_k.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/inline/selection_key.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBins = 256;  // one byte of a key at a time

struct Problem {
  int64_t kv_heads, max_len, stride, sink, recent;
  const int32_t *lengths, *counts;
};

struct Shared {
  int histogram[kBins];
  int warp_totals[kWarps];
  uint32_t bin;  // of the threshold's byte
  int count;     // of keys still to choose within the bin
};

// How many threads before this one have the flag; `total` counts those of the whole block.
__device__ int flags_before(bool flag, Shared& shared, int* total) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const uint32_t votes = __ballot_sync(kAllLanes, flag);
  __syncthreads();  // the previous totals have been read
  if (lane == 0) shared.warp_totals[warp] = __popc(votes);
  __syncthreads();  // the totals are visible below
  int before = __popc(votes & ((1u << lane) - 1u));
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += shared.warp_totals[w];
    *total += shared.warp_totals[w];
  }
  return before;
}

// The value of the `count`-th smallest key of positions [first, end), and how many keys that equal
// it are chosen.
template <class Score>
__device__ uint32_t find_threshold(const Score* scores, int64_t first, int64_t end, int count,
                                   Shared& shared, int* ties) {
  uint32_t prefix = 0, mask = 0;
  for (int shift = kSelectionKeyBits<Score> - 8; shift >= 0; shift -= 8) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) shared.histogram[bin] = 0;
    __syncthreads();  // the histogram is empty
    for (int64_t p = first + threadIdx.x; p < end; p += kThreads) {
      const uint32_t key = selection_key(scores[p]);
      if ((key & mask) == prefix) atomicAdd(&shared.histogram[key >> shift & 0xff], 1);
    }
    __syncthreads();  // every key is counted
    if (threadIdx.x == 0) {
      uint32_t bin = 0;
      int left = count;
      while (shared.histogram[bin] < left) left -= shared.histogram[bin++];
      shared.bin = bin;
      shared.count = left;
    }
    __syncthreads();  // the bin is known
    prefix |= shared.bin << shift;
    mask |= 0xffu << shift;
    count = shared.count;
    __syncthreads();  // the bin has been read
  }
  *ties = count;
  return prefix;
}

// One block per (sequence, kv head).
template <class Score>
__global__ void __launch_bounds__(kThreads)
    select_top_k_kernel(Problem p, const Score* all_scores, int32_t* all_indices) {
  Shared& shared = *dynamic_shared<Shared>();
  const int64_t row = blockIdx.y * p.kv_heads + blockIdx.x;
  const Score* scores = all_scores + row * p.max_len;
  int32_t* indices = all_indices + row * p.stride;
  const int64_t length = p.lengths[blockIdx.y], count = p.counts[blockIdx.y];

  // Windows that exceed the budget lose their oldest keys.
  const int64_t recent = min(min(p.recent, length), count);
  const int64_t sink = min(p.sink, length - recent), sinks = min(sink, count - recent);
  const int64_t end = length - recent;
  const int rest = static_cast<int>(count - recent - sinks);
  for (int64_t i = threadIdx.x; i < sinks; i += kThreads) {
    indices[i] = static_cast<int32_t>(sink - sinks + i);
  }
  for (int64_t i = threadIdx.x; i < recent; i += kThreads) {
    indices[sinks + rest + i] = static_cast<int32_t>(end + i);
  }
  if (rest == 0) return;

  int ties = 0;
  const uint32_t threshold = find_threshold(scores, sink, end, rest, shared, &ties);
  int equal = 0;
  for (int64_t tile = sink; tile < end; tile += kThreads) {
    const int64_t key = tile + threadIdx.x;
    int total = 0;
    flags_before(key < end && selection_key(scores[key]) == threshold, shared, &total);
    equal += total;
  }
  const int older_ties = equal - ties;  // these are not chosen
  int seen_ties = 0;
  int64_t written = sinks;
  for (int64_t tile = sink; tile < end; tile += kThreads) {
    const int64_t key = tile + threadIdx.x;
    const uint32_t rank = key < end ? selection_key(scores[key]) : UINT32_MAX;
    const bool is_tie = key < end && rank == threshold;
    int tile_ties = 0, tile_chosen = 0;
    const int tie = seen_ties + flags_before(is_tie, shared, &tile_ties);
    const bool chosen = key < end && (rank < threshold || (is_tie && tie >= older_ties));
    const int before = flags_before(chosen, shared, &tile_chosen);
    if (chosen) indices[written + before] = static_cast<int32_t>(key);
    seen_ties += tile_ties;
    written += tile_chosen;
  }
}

}  // namespace

void cuda::select_top_k(Stream& stream, Workspace&, ConstTensorView scores, ConstTensorView lengths,
                        ConstTensorView counts, int64_t sink, int64_t recent, TensorView indices) {
  const Problem p{.kv_heads = scores.dim(1),
                  .max_len = scores.dim(2),
                  .stride = indices.dim(2),
                  .sink = sink,
                  .recent = recent,
                  .lengths = lengths.data<int32_t>(),
                  .counts = counts.data<int32_t>()};
  const dim3 grid(static_cast<unsigned int>(p.kv_heads), static_cast<unsigned int>(scores.dim(0)));
  if (scores.dtype() == DType::u16) {
    launch(select_top_k_kernel<uint16_t>, grid, kThreads, sizeof(Shared), stream, p,
           scores.data<uint16_t>(), indices.data<int32_t>());
  } else {
    launch(select_top_k_kernel<float>, grid, kThreads, sizeof(Shared), stream, p,
           scores.data<float>(), indices.data<int32_t>());
  }
}

}  // namespace switchyard
