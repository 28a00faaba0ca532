#pragma once

// Parts that both passes of the CPU's attention share: blocks of queries and keys, masks, and the
// scratch of a thread.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/linear/block_product.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cpu {

// A block of scores has 256 KiB: it fits into the L2 cache together with its operands, and is large
// enough for oneDNN's products to run at full speed.
constexpr int64_t kQueryRows = 128;
constexpr int64_t kKeyRows = 512;

constexpr int64_t kVectorFloats = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct AttentionShape {
  int64_t batch, heads, kv_heads, seq_len, head_dim;

  int64_t group() const { return heads / kv_heads; }  // query heads of one key/value head
};

inline AttentionShape shape_of(ConstTensorView q, ConstTensorView k) {
  return {q.dim(0), q.dim(1), k.dim(1), q.dim(2), q.dim(3)};
}

// An f32 matrix; `stride` elements from row to row.
struct Rows {
  const float* data;
  int64_t stride;
};

// The matrix itself if it is f32, else a dense copy in scratch.
template <class T>
Rows as_f32(const T* x, int64_t rows, int64_t cols, int64_t stride, float* scratch) {
  if constexpr (std::is_same_v<T, float>) {
    return {x, stride};
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      const T* in = x + i * stride;
      float* out = scratch + i * cols;
#pragma omp simd
      for (int64_t j = 0; j < cols; ++j) out[j] = in[j];
    }
    return {scratch, cols};
  }
}

// c [m, n] (+)= op(a) op(b), on this thread; rows of c are n apart.
inline void product(Rows a, Transpose transpose_a, Rows b, Transpose transpose_b, int64_t m,
                    int64_t n, int64_t k, Accumulate accumulate, float* c) {
  multiply_block(m, n, k, {a.data, a.stride, transpose_a}, {b.data, b.stride, transpose_b},
                 accumulate, c);
}

// One row of scratch per OpenMP thread, independent of the iterations that the thread runs.
class ThreadScratch {
 public:
  ThreadScratch(Workspace& workspace, int64_t floats)
      : all_(workspace.take({omp_get_max_threads(), floats}, DType::f32)) {}

  // Hands out consecutive pieces of the calling thread's row.
  class Pieces {
   public:
    explicit Pieces(float* next) : next_(next) {}
    float* take(int64_t floats) { return std::exchange(next_, next_ + floats); }

   private:
    float* next_;
  };
  Pieces mine() const { return Pieces(all_.data<float>() + omp_get_thread_num() * all_.dim(1)); }

 private:
  TensorView all_;
};

// Each pass takes this from the workspace: a row of f32 for each thread.
ThreadScratch attention_forward_scratch(Workspace& workspace, const AttentionShape& shape);
ThreadScratch attention_backward_scratch(Workspace& workspace, const AttentionShape& shape,
                                         DType dtype);

struct Range {
  int64_t begin, end;
};

// The part of `range` in [first, first + count), relative to `first`; may be empty.
inline Range clip(Range range, int64_t first, int64_t count) {
  const int64_t begin = std::clamp<int64_t>(range.begin - first, 0, count);
  return {begin, std::clamp<int64_t>(range.end - first, begin, count)};
}

// Masks a row of scores outside `visible`: with -infinity up to the boundaries of whole vectors,
// because scalar tails would cost more than the vectors themselves, and with 0 beyond. Returns the
// range widened to whole vectors; a loop over exp(score) needs to visit only this range.
inline Range mask_row(Range visible, int64_t count, float* scores) {
  if (visible.begin == visible.end) visible = {0, 0};
  const Range widened = {
      visible.begin / kVectorFloats * kVectorFloats,
      std::min((visible.end + kVectorFloats - 1) / kVectorFloats * kVectorFloats, count)};
  std::fill(scores, scores + widened.begin, 0.0f);
  std::fill(scores + widened.begin, scores + visible.begin, -kInfinity);
  std::fill(scores + visible.end, scores + widened.end, -kInfinity);
  std::fill(scores + widened.end, scores + count, 0.0f);
  return widened;
}

// The attention mask of one sequence: causal, and within the query's own document.
class DocumentMask {
 public:
  DocumentMask(ConstTensorView document_start, int64_t batch)
      : start_(document_start ? document_start.data<int32_t>() + batch * document_start.dim(1)
                              : nullptr) {}

  // The keys that a query at `position` sees.
  Range visible(int64_t position) const { return {start_ ? start_[position] : 0, position + 1}; }

 private:
  const int32_t* start_;
};

inline void require_documents(ConstTensorView document_start) {
  if (!document_start) return;
  const int32_t* start = document_start.data<int32_t>();
  const int64_t seq_len = document_start.dim(1);
  for (int64_t i = 0; i < document_start.num_elements(); ++i) {
    const int64_t t = i % seq_len;
    require(start[i] >= (t == 0 ? 0 : start[i - 1]) && start[i] <= t,
            "document_start[{}][{}] is {}: it must not decrease or exceed the position",
            i / seq_len, t, start[i]);
  }
}

}  // namespace switchyard::cpu
