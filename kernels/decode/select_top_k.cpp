#include "kernels/decode/select_top_k.h"

#include <omp.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/cuda/scratch.h"
#include "kernels/inline/selection_key.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

// Keys that are counted before the counts are widened: 16-bit lanes can hold so many.
constexpr int64_t kCounted = 32768;
// Keys that are compared together; each is a bit of a mask.
constexpr int64_t kMasked = 32;

// How many of `n` keys are at most `bound`.
template <class Key>
int64_t count_up_to(const Key* keys, int64_t n, Key bound) {
  int64_t total = 0;
  for (int64_t begin = 0; begin < n; begin += kCounted) {
    const int64_t end = std::min(begin + kCounted, n);
    Key count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = begin; i < end; ++i) count += keys[i] <= bound ? Key{1} : Key{0};
    total += count;
  }
  return total;
}

// The chosen keys are all keys below `key`, and the keys equal to it except the first `older_ties`.
template <class Key>
struct Threshold {
  Key key;
  int64_t older_ties;
};

// The threshold of the `wanted` smallest keys, 1 <= wanted <= n. The function bisects the range of
// values, which is small for distances, and counts with vector instructions. A histogram would wait
// for its own stores, because most distances are near their mean.
template <class Key>
Threshold<Key> find_threshold(const Key* keys, int64_t n, int64_t wanted) {
  Key low = std::numeric_limits<Key>::max(), high = 0;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < n; ++i) {
    low = keys[i] < low ? keys[i] : low;
    high = keys[i] > high ? keys[i] : high;
  }
  int64_t up_to_high = n;
  while (low < high && up_to_high > wanted) {
    const auto middle = static_cast<Key>(low + (high - low) / 2);
    const int64_t count = count_up_to(keys, n, middle);
    if (count >= wanted) {
      high = middle;
      up_to_high = count;
    } else {
      low = static_cast<Key>(middle + 1);
    }
  }
  return {high, up_to_high - wanted};
}

// Bit i says whether keys[i] is at most `bound`, for `count` <= kMasked keys.
template <class Key>
uint32_t mask_up_to(const Key* keys, int64_t count, Key bound) {
  uint32_t mask = 0;
#pragma omp simd reduction(| : mask)
  for (int64_t i = 0; i < count; ++i) mask |= uint32_t{keys[i] <= bound} << i;
  return mask;
}

// Writes the positions of the `wanted` smallest of `n` keys in ascending order; keys[0] has the
// position `first`.
template <class Key>
void choose(const Key* keys, int64_t n, int64_t wanted, int64_t first, int32_t* indices) {
  auto [threshold, older_ties] = find_threshold(keys, n, wanted);
  const int32_t* end = indices + wanted;
  for (int64_t i = 0; indices < end; i += kMasked) {
    uint32_t mask = i + kMasked <= n ? mask_up_to(keys + i, kMasked, threshold)
                                     : mask_up_to(keys + i, n - i, threshold);
    for (; mask != 0 && indices < end; mask &= mask - 1) {
      const int64_t at = i + std::countr_zero(mask);
      if (keys[at] == threshold && older_ties > 0) {
        --older_ties;
      } else {
        *indices++ = static_cast<int32_t>(first + at);
      }
    }
  }
}

// The scores [first, end) as keys, of which the smallest are best: distances in place, f32 scores
// converted in `scratch`.
const uint16_t* keys_of(const uint16_t* scores, int64_t first, int64_t, uint32_t*) {
  return scores + first;
}
const uint32_t* keys_of(const float* scores, int64_t first, int64_t end, uint32_t* scratch) {
#pragma omp simd
  for (int64_t p = first; p < end; ++p) scratch[p - first] = selection_key(scores[p]);
  return scratch;
}

// Writes the positions of one (sequence, kv head) in ascending order.
template <class Score>
void select_row(const Score* scores, int64_t length, int64_t count, int64_t sink, int64_t recent,
                uint32_t* scratch, int32_t* indices) {
  // Windows that exceed the budget lose their oldest keys.
  recent = std::min({recent, length, count});
  sink = std::min(sink, length - recent);
  const int64_t sinks = std::min(sink, count - recent), rest = count - recent - sinks;
  for (int64_t p = sink - sinks; p < sink; ++p) *indices++ = static_cast<int32_t>(p);
  if (rest > 0) {
    const int64_t end = length - recent;
    choose(keys_of(scores, sink, end, scratch), end - sink, rest, sink, indices);
  }
  for (int64_t i = 0; i < recent; ++i)
    indices[rest + i] = static_cast<int32_t>(length - recent + i);
}

// Every thread's keys of f32 scores.
//   [threads, max_len] i32; for u16 scores [threads, 0]
TensorView select_scratch(Workspace& workspace, ConstTensorView scores) {
  const int64_t keys = scores.dtype() == DType::f32 ? scores.dim(2) : 0;
  return workspace.take({omp_get_max_threads(), keys}, DType::i32);
}

template <class Score>
void select(Workspace& workspace, ConstTensorView scores, ConstTensorView lengths,
            ConstTensorView counts, int64_t sink, int64_t recent, TensorView indices) {
  const int64_t kv_heads = scores.dim(1), max_len = scores.dim(2), stride = indices.dim(2);
  WorkspaceScope scope(workspace);
  const TensorView scratch = select_scratch(workspace, scores);
#pragma omp parallel for schedule(dynamic)
  for (int64_t row = 0; row < scores.dim(0) * kv_heads; ++row) {
    auto* mine = static_cast<uint32_t*>(scratch.raw()) + omp_get_thread_num() * scratch.dim(1);
    select_row(scores.data<Score>() + row * max_len, lengths.data<int32_t>()[row / kv_heads],
               counts.data<int32_t>()[row / kv_heads], sink, recent, mine,
               indices.data<int32_t>() + row * stride);
  }
}

}  // namespace

void select_top_k(Stream& stream, Workspace& workspace, ConstTensorView scores,
                  ConstTensorView lengths, ConstTensorView counts, int64_t sink, int64_t recent,
                  TensorView indices) {
  require(scores.rank() == 3 && indices.rank() == 3,
          "scores has shape {} and indices {}, expected three dimensions each", scores.shape(),
          indices.shape());
  require(scores.dtype() == DType::u16 || scores.dtype() == DType::f32,
          "scores is {}, expected u16 or f32", to_string(scores.dtype()));
  require_shape(lengths, {scores.dim(0)}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(counts, {scores.dim(0)}, "counts");
  require_dtype(counts, DType::i32, "counts");
  require_shape(indices, {scores.dim(0), scores.dim(1), indices.dim(2)}, "indices");
  require_dtype(indices, DType::i32, "indices");
  require(sink >= 0 && recent >= 0, "sink is {} and recent {}, expected at least 0", sink, recent);
  count_scratch(
      stream, workspace, [&] { select_scratch(workspace, scores); },
      [&] { cuda::select_top_k_scratch(workspace, scores); });
  SWITCHYARD_BODY(stream, select_top_k)
  (stream, workspace, scores, lengths, counts, sink, recent, indices);
}

void cpu::select_top_k(Stream&, Workspace& workspace, ConstTensorView scores,
                       ConstTensorView lengths, ConstTensorView counts, int64_t sink,
                       int64_t recent, TensorView indices) {
  for (int64_t b = 0; b < lengths.dim(0); ++b) {
    const int32_t length = lengths.data<int32_t>()[b], count = counts.data<int32_t>()[b];
    require(length >= 1 && length <= scores.dim(2),
            "lengths[{}] is {}, expected 1 to {} cached positions", b, length, scores.dim(2));
    require(count >= 1 && count <= std::min<int64_t>(length, indices.dim(2)),
            "counts[{}] is {}, expected 1 to {}", b, count,
            std::min<int64_t>(length, indices.dim(2)));
  }
  if (scores.dtype() == DType::u16) {
    select<uint16_t>(workspace, scores, lengths, counts, sink, recent, indices);
  } else {
    select<float>(workspace, scores, lengths, counts, sink, recent, indices);
  }
}

}  // namespace switchyard
