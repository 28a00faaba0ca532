#include "kernels/decode/select_top_k.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch.h"
#include "kernels/inline/selection_key.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

// A radix selection: each pass counts the keys that agree with the threshold so far by their next
// byte, and finds the byte of the threshold among the counts; the last pass writes the positions.
// Each row is split among several blocks, which add up each other's counts.

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBins = 256;  // the values of a byte; thread t adds up the counts of bin t
static_assert(kThreads == kBins && kBins == kSelectionBins);
constexpr int kPerThread = 8;  // neighbouring keys
constexpr int kTile = kThreads * kPerThread;
static_assert(kSelectionTile == kTile);

template <class Score>
constexpr int kPasses = kSelectionKeyBits<Score> / 8;

struct Problem {
  int64_t kv_heads, max_len, stride, sink, recent, keys_per_split, splits;
  bool vectors;  // whether 8 scores can be read in 16-byte accesses
  const int32_t *lengths, *counts;
  int32_t* histograms;  // [rows, passes, splits, bins]
};

// The keys of a row that scores decide about: positions [sink, end), of which `rest` are chosen.
struct Window {
  int64_t sink, end, sinks, recent;
  int rest;
};

struct Shared {
  int counters[kWarps][kBins];  // each warp counts by itself
  uint64_t warp_totals[kWarps];
  uint32_t bin;  // of the threshold's byte
  int left;      // keys to choose within the bin
  int less_before, equal_before, equal;
};

// Windows that exceed the budget lose their oldest keys.
__device__ Window window_of(const Problem& p) {
  const int64_t length = p.lengths[blockIdx.z], count = p.counts[blockIdx.z];
  const int64_t recent = min(min(p.recent, length), count);
  const int64_t sink = min(p.sink, length - recent), sinks = min(sink, count - recent);
  return {.sink = sink,
          .end = length - recent,
          .sinks = sinks,
          .recent = recent,
          .rest = static_cast<int>(count - recent - sinks)};
}

// The sum of the values of the threads before this one; `total` is that of the whole block.
__device__ uint64_t sum_before(uint64_t value, Shared& shared, uint64_t* total) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  uint64_t up_to = value;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint64_t other = __shfl_up_sync(kAllLanes, up_to, offset);
    if (lane >= offset) up_to += other;
  }
  __syncthreads();  // the previous totals have been read
  if (lane == kWarpSize - 1) shared.warp_totals[warp] = up_to;
  __syncthreads();  // the totals are visible below
  uint64_t before = up_to - value;
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += shared.warp_totals[w];
    *total += shared.warp_totals[w];
  }
  return before;
}

// Two counts that are summed together.
__device__ uint64_t packed(uint32_t high, uint32_t low) { return uint64_t{high} << 32 | low; }
__device__ int high_of(uint64_t pair) { return static_cast<int>(pair >> 32); }
__device__ int low_of(uint64_t pair) { return static_cast<int>(static_cast<uint32_t>(pair)); }

// Reads the keys of positions [begin, begin + kPerThread). Bit i of the result says whether key i
// is within the window and the split.
template <class Score>
__device__ uint32_t load_keys(const Problem& p, const Window& w, const Score* scores, int64_t begin,
                              int64_t end, uint32_t (&keys)[kPerThread]) {
  const int64_t first = max(begin, w.sink), last = min(min(begin + kPerThread, end), w.end);
  if (first >= last) return 0;
  if (p.vectors) {
    constexpr int kPieces = kPerThread * sizeof(Score) / sizeof(uint4);
    alignas(16) Score values[kPerThread];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      reinterpret_cast<uint4*>(values)[i] = reinterpret_cast<const uint4*>(scores + begin)[i];
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) keys[i] = selection_key(values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      keys[i] = begin + i < last ? selection_key(scores[begin + i]) : 0u;
    }
  }
  const uint32_t before_last = (1u << (last - begin)) - 1u;
  return before_last & ~((1u << (first - begin)) - 1u);
}

// The bytes of the threshold that the passes so far have found.
struct Threshold {
  uint32_t value = 0, mask = 0;
  int left;  // keys to choose among those that agree with it
  // Of the blocks before this one, and of all.
  int less_before = 0, equal_before = 0, equal = 0;
};

template <class Score>
__device__ Threshold find_threshold(const Problem& p, int64_t row, int passes, int count,
                                    Shared& shared) {
  Threshold t{.left = count};
  for (int pass = 0; pass < passes; ++pass) {
    const int32_t* counts =
        p.histograms + (row * kPasses<Score> + pass) * p.splits * kBins + threadIdx.x;
    int total = 0, before = 0, sum = 0;
    for (int64_t split = 0; split < p.splits; ++split) {
      const int of_split = counts[split * kBins];
      total += of_split;
      before += split < blockIdx.x ? of_split : 0;
    }
    uint64_t all = 0;
    const uint64_t lower = sum_before(packed(total, before), shared, &all);
    sum = high_of(lower);
    if (sum < t.left && t.left <= sum + total) {
      shared.bin = threadIdx.x;
      shared.left = t.left - sum;
      shared.less_before = low_of(lower);
      shared.equal_before = before;
      shared.equal = total;
    }
    __syncthreads();  // the bin is known
    const int shift = kSelectionKeyBits<Score> - 8 * (pass + 1);
    t.value |= shared.bin << shift;
    t.mask |= 0xffu << shift;
    t.left = shared.left;
    t.less_before += shared.less_before;
    t.equal_before = shared.equal_before;
    t.equal = shared.equal;
  }
  return t;
}

// Counts this split's keys that agree with the threshold, by their next byte. Neighbours often have
// the same byte, the first one of distances above all, so a thread counts runs of its keys.
template <class Score>
__device__ void count_bytes(const Problem& p, const Window& w, const Score* scores,
                            const Threshold& t, int shift, Shared& shared, int32_t* histogram) {
  for (int warp = 0; warp < kWarps; ++warp) shared.counters[warp][threadIdx.x] = 0;
  __syncthreads();  // all counters are zero
  int* counters = shared.counters[threadIdx.x / kWarpSize];
  const int64_t begin = blockIdx.x * p.keys_per_split, end = begin + p.keys_per_split;
  for (int64_t tile = begin; tile < min(end, w.end); tile += kTile) {
    uint32_t keys[kPerThread];
    const uint32_t here = load_keys(p, w, scores, tile + threadIdx.x * kPerThread, end, keys);
    uint32_t byte = 0;
    int run = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (!(here >> i & 1u) || (keys[i] & t.mask) != t.value) continue;
      const uint32_t next = keys[i] >> shift & 0xffu;
      if (next != byte && run > 0) {
        atomicAdd(counters + byte, run);
        run = 0;
      }
      byte = next;
      ++run;
    }
    if (run > 0) atomicAdd(counters + byte, run);
  }
  __syncthreads();  // every key is counted
  int total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += shared.counters[warp][threadIdx.x];
  histogram[threadIdx.x] = total;
}

// Writes the positions of this split's chosen keys. Of the keys that equal the threshold the oldest
// are not chosen.
template <class Score>
__device__ void write_chosen(const Problem& p, const Window& w, const Score* scores,
                             const Threshold& t, Shared& shared, int32_t* indices) {
  const int older_ties = t.equal - t.left;
  int64_t less = w.sinks + t.less_before;
  int equal = t.equal_before;
  const int64_t begin = blockIdx.x * p.keys_per_split, end = begin + p.keys_per_split;
  for (int64_t tile = begin; tile < min(end, w.end); tile += kTile) {
    const int64_t first = tile + threadIdx.x * kPerThread;
    uint32_t keys[kPerThread], num_less = 0, num_equal = 0;
    const uint32_t here = load_keys(p, w, scores, first, end, keys);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      num_less += (here >> i & 1u) && keys[i] < t.value;
      num_equal += (here >> i & 1u) && keys[i] == t.value;
    }
    uint64_t total = 0;
    const uint64_t before = sum_before(packed(num_less, num_equal), shared, &total);
    int64_t below = less + high_of(before);
    int ties = equal + low_of(before);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (!(here >> i & 1u) || keys[i] > t.value) continue;
      const bool is_tie = keys[i] == t.value;
      const int chosen_ties = max(0, ties - older_ties);
      if (!is_tie || ties >= older_ties) {
        indices[below + chosen_ties] = static_cast<int32_t>(first + i);
      }
      ties += is_tie;
      below += !is_tie;
    }
    less += high_of(total);
    equal += low_of(total);
  }
}

// Block (split, kv head, sequence) does its part of passes [first_pass, end_pass); the pass behind
// the last byte's writes the positions. Rows of one block do all passes in one launch.
template <class Score>
__global__ void __launch_bounds__(kThreads)
    select_top_k_kernel(Problem p, int first_pass, int end_pass, const Score* all_scores,
                        int32_t* all_indices) {
  Shared& shared = *dynamic_shared<Shared>();
  const int64_t row = blockIdx.z * p.kv_heads + blockIdx.y;
  const Score* scores = all_scores + row * p.max_len;
  int32_t* indices = all_indices + row * p.stride;
  const Window w = window_of(p);
  if (blockIdx.x == 0 && end_pass > kPasses<Score>) {
    for (int64_t i = threadIdx.x; i < w.sinks; i += kThreads) {
      indices[i] = static_cast<int32_t>(w.sink - w.sinks + i);
    }
    for (int64_t i = threadIdx.x; i < w.recent; i += kThreads) {
      indices[w.sinks + w.rest + i] = static_cast<int32_t>(w.end + i);
    }
  }
  if (w.rest == 0) return;
  for (int pass = first_pass; pass < end_pass; ++pass) {
    __syncthreads();  // the histogram of the pass before is visible below
    const Threshold t = find_threshold<Score>(p, row, pass, w.rest, shared);
    if (pass == kPasses<Score>) return write_chosen(p, w, scores, t, shared, indices);
    int32_t* histogram =
        p.histograms + ((row * kPasses<Score> + pass) * p.splits + blockIdx.x) * kBins;
    count_bytes(p, w, scores, t, kSelectionKeyBits<Score> - 8 * (pass + 1), shared, histogram);
  }
}

template <class Score>
void select(Stream& stream, const Problem& p, int64_t batch, const Score* scores,
            int32_t* indices) {
  const dim3 grid(static_cast<unsigned int>(p.splits), static_cast<unsigned int>(p.kv_heads),
                  static_cast<unsigned int>(batch));
  constexpr int kEnd = kPasses<Score> + 1;
  const int passes_at_once = p.splits == 1 ? kEnd : 1;
  for (int pass = 0; pass < kEnd; pass += passes_at_once) {
    launch(select_top_k_kernel<Score>, grid, kThreads, sizeof(Shared), stream, p, pass,
           pass + passes_at_once, scores, indices);
  }
}

}  // namespace

void cuda::select_top_k(Stream& stream, Workspace& workspace, ConstTensorView scores,
                        ConstTensorView lengths, ConstTensorView counts, int64_t sink,
                        int64_t recent, TensorView indices) {
  WorkspaceScope scope(workspace);
  const TensorView histograms = select_top_k_scratch(workspace, scores);
  const int64_t splits = histograms.dim(2), max_len = scores.dim(2);
  const Problem p{.kv_heads = scores.dim(1),
                  .max_len = max_len,
                  .stride = indices.dim(2),
                  .sink = sink,
                  .recent = recent,
                  .keys_per_split = (max_len + splits * kTile - 1) / (splits * kTile) * kTile,
                  .splits = splits,
                  .vectors = allow_vectors(scores.raw()) && max_len % kPerThread == 0,
                  .lengths = lengths.data<int32_t>(),
                  .counts = counts.data<int32_t>(),
                  .histograms = histograms.data<int32_t>()};
  if (scores.dtype() == DType::u16) {
    select(stream, p, scores.dim(0), scores.data<uint16_t>(), indices.data<int32_t>());
  } else {
    select(stream, p, scores.dim(0), scores.data<float>(), indices.data<int32_t>());
  }
}

}  // namespace switchyard
