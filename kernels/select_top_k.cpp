#include "kernels/select_top_k.h"

#include <algorithm>
#include <array>

#include "kernels/dispatch.h"
#include "kernels/selection_key.h"

namespace switchyard {
namespace {

// Positions [first, end), of which those within the windows are not ranked.
struct Ranked {
  int64_t first, end;
};

// What is chosen of the ranked keys: all whose key is below `key`, and the last `ties` of those
// that equal it.
struct Threshold {
  uint32_t key;
  int64_t ties;
};

// The value of the `count`-th smallest key, count >= 1, a byte at a time from the highest: after
// each, only keys that begin as it does matter.
template <class Score>
Threshold find_threshold(const Score* scores, Ranked ranked, int64_t count) {
  uint32_t prefix = 0, mask = 0;
  for (int shift = kSelectionKeyBits<Score> - 8; shift >= 0; shift -= 8) {
    std::array<int64_t, 256> histogram{};
    for (int64_t p = ranked.first; p < ranked.end; ++p) {
      const uint32_t key = selection_key(scores[p]);
      if ((key & mask) == prefix) ++histogram[key >> shift & 0xff];
    }
    uint32_t bin = 0;
    while (histogram[bin] < count) count -= histogram[bin++];
    prefix |= bin << shift;
    mask |= 0xffu << shift;
  }
  return {prefix, count};
}

// The positions of one (sequence, kv head), rising.
template <class Score>
void select_row(const Score* scores, int64_t length, int64_t count, int64_t sink, int64_t recent,
                int32_t* indices) {
  // Windows that do not fit the budget give up their oldest keys.
  recent = std::min({recent, length, count});
  sink = std::min(sink, length - recent);
  const int64_t sinks = std::min(sink, count - recent);
  for (int64_t p = sink - sinks; p < sink; ++p) *indices++ = static_cast<int32_t>(p);
  const Ranked ranked = {sink, length - recent};
  const int64_t rest = count - recent - sinks;
  if (rest > 0) {
    const Threshold threshold = find_threshold(scores, ranked, rest);
    int64_t older_ties = -threshold.ties;
    for (int64_t p = ranked.first; p < ranked.end; ++p) {
      older_ties += selection_key(scores[p]) == threshold.key;
    }
    for (int64_t p = ranked.first; p < ranked.end; ++p) {
      const uint32_t key = selection_key(scores[p]);
      if (key < threshold.key || (key == threshold.key && --older_ties < 0)) {
        *indices++ = static_cast<int32_t>(p);
      }
    }
  }
  for (int64_t p = length - recent; p < length; ++p) *indices++ = static_cast<int32_t>(p);
}

template <class Score>
void select(ConstTensorView scores, ConstTensorView lengths, ConstTensorView counts, int64_t sink,
            int64_t recent, TensorView indices) {
  const int64_t kv_heads = scores.dim(1), max_len = scores.dim(2), stride = indices.dim(2);
#pragma omp parallel for schedule(dynamic)
  for (int64_t row = 0; row < scores.dim(0) * kv_heads; ++row) {
    select_row(scores.data<Score>() + row * max_len, lengths.data<int32_t>()[row / kv_heads],
               counts.data<int32_t>()[row / kv_heads], sink, recent,
               indices.data<int32_t>() + row * stride);
  }
}

}  // namespace

void select_top_k(Stream& stream, Workspace& workspace, ConstTensorView scores,
                  ConstTensorView lengths, ConstTensorView counts, int64_t sink, int64_t recent,
                  TensorView indices) {
  require(scores.rank() == 3 && indices.rank() == 3,
          "scores has shape {} and indices {}, expected three dimensions each",
          to_string(scores.shape()), to_string(indices.shape()));
  require(scores.dtype() == DType::u16 || scores.dtype() == DType::f32,
          "scores is {}, expected u16 or f32", to_string(scores.dtype()));
  require_shape(lengths, {scores.dim(0)}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(counts, {scores.dim(0)}, "counts");
  require_dtype(counts, DType::i32, "counts");
  require_shape(indices, {scores.dim(0), scores.dim(1), indices.dim(2)}, "indices");
  require_dtype(indices, DType::i32, "indices");
  require(sink >= 0 && recent >= 0, "windows of {} and {} keys", sink, recent);
  SWITCHYARD_BODY(stream, select_top_k)
  (stream, workspace, scores, lengths, counts, sink, recent, indices);
}

void cpu::select_top_k(Stream&, Workspace&, ConstTensorView scores, ConstTensorView lengths,
                       ConstTensorView counts, int64_t sink, int64_t recent, TensorView indices) {
  for (int64_t b = 0; b < lengths.dim(0); ++b) {
    const int32_t length = lengths.data<int32_t>()[b], count = counts.data<int32_t>()[b];
    require(length >= 1 && length <= scores.dim(2),
            "lengths[{}] is {}, expected 1 to {} cached positions", b, length, scores.dim(2));
    require(count >= 1 && count <= std::min<int64_t>(length, indices.dim(2)),
            "counts[{}] is {}, expected 1 to {}", b, count,
            std::min<int64_t>(length, indices.dim(2)));
  }
  if (scores.dtype() == DType::u16) {
    select<uint16_t>(scores, lengths, counts, sink, recent, indices);
  } else {
    select<float>(scores, lengths, counts, sink, recent, indices);
  }
}

}  // namespace switchyard
