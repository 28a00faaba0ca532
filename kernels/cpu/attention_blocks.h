#pragma once

// Parts that both passes of the CPU's attention share: blocks of queries and keys, masks, and the
// scratch of a thread.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/cpu/onednn_matmul.h"
#include "kernels/cpu/transpose.h"
#include "kernels/linear/bf16_method.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cpu {

// A block of scores has 256 KiB: it fits into the L2 cache together with its operands, and is large
// enough for oneDNN's products to run at full speed.
constexpr int64_t kQueryRows = 128;
constexpr int64_t kKeyRows = 512;
// Towards the end of the diagonal blocks have fewer keys, and only the queries from the first of
// them on.
constexpr int64_t kDiagonalKeys = 64;

constexpr int64_t kVectorFloats = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct AttentionShape {
  int64_t batch, heads, kv_heads, seq_len, head_dim;

  int64_t group() const { return heads / kv_heads; }  // query heads of one key/value head
};

inline AttentionShape shape_of(ConstTensorView q, ConstTensorView k) {
  return {q.dim(0), q.dim(1), k.dim(1), q.dim(2), q.dim(3)};
}

// A matrix; `stride` elements from row to row.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;

  Rows from(int64_t row) const { return {data + row * stride, stride}; }
  Rows from_column(int64_t column) const { return {data + column, stride}; }
};

// The matrix itself if its elements are `Factor`s, else a dense copy in scratch.
template <class Factor, class T>
Rows<Factor> as_factor(const T* x, int64_t rows, int64_t cols, int64_t stride, Factor* scratch) {
  if constexpr (std::is_same_v<T, Factor>) {
    return {x, stride};
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      const T* in = x + i * stride;
      Factor* out = scratch + i * cols;
#pragma omp simd
      for (int64_t j = 0; j < cols; ++j) out[j] = in[j];
    }
    return {scratch, cols};
  }
}

// x^T [cols, rows], stored densely in `out`.
template <class Factor, class T>
Rows<Factor> transposed(const T* x, int64_t rows, int64_t cols, int64_t stride, Factor* out) {
  transpose(x, rows, cols, stride, out);
  return {out, rows};
}

// c [m, n] (+)= op(a) b, on this thread; rows of c are n apart.
template <class Factor>
void product(Rows<Factor> a, Transpose transpose_a, Rows<Factor> b, Transpose transpose_b,
             int64_t m, int64_t n, int64_t k, Accumulate accumulate, float* c) {
  compute_block({.m = m,
                 .n = n,
                 .k = k,
                 .dtype = dtype_of<Factor>(),
                 .a = {a.data, a.stride, transpose_a},
                 .b = {b.data, b.stride, transpose_b},
                 .c = c,
                 .c_stride = n,
                 .c_dtype = DType::f32,
                 .accumulate = accumulate});
}

// Calls body.operator()<T, Factor>() for operands of `dtype`, stored as T, whose products have
// factors of type Factor: bf16 is multiplied as it is only where bf16 products are native.
template <class Body>
void dispatch_factors(DType dtype, Body&& body) {
  dispatch_compute_dtype(dtype, [&]<class T>() {
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (bf16_method() == Bf16Method::native) return body.template operator()<T, bfloat16>();
    }
    body.template operator()<T, float>();
  });
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
    // Room for f32s, which may hold bf16s instead.
    template <class Factor>
    Factor* take_factors(int64_t count) {
      return reinterpret_cast<Factor*>(take(count));
    }

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

// Keys [first, first + count), and queries [first_query, first_query + queries) of which the last
// sees all of them. Scores are stored transposed, [count, queries]: then most products have no
// transposed operand, which oneDNN would have to repack, and vectors run along the queries.
struct ScoreBlock {
  int64_t first, count;
  int64_t first_query, queries;
};

// Calls visit(block) for blocks of scores that cover what the queries [first, first + rows) see.
template <class Visit>
void for_score_blocks(const DocumentMask& mask, int64_t first, int64_t rows, const Visit& visit) {
  const int64_t end = first + rows, diagonal = std::min(first + kDiagonalKeys, end);
  for (int64_t key = mask.visible(first).begin; key < diagonal; key += kKeyRows) {
    visit(ScoreBlock{key, std::min(kKeyRows, diagonal - key), first, rows});
  }
  for (int64_t key = diagonal; key < end; key += kDiagonalKeys) {
    visit(ScoreBlock{key, std::min(kDiagonalKeys, end - key), key, end - key});
  }
}

// Masks the scores of a block (mask_row) and calls body(row, range) for each key: the index of its
// row and the range of queries to visit, relative to the block's first.
template <class Body>
void for_masked_rows(const ScoreBlock& block, const DocumentMask& mask, float* scores,
                     const Body& body) {
  int64_t end = 0;  // queries from here on belong to documents that begin after the key
  for (int64_t j = 0; j < block.count; ++j) {
    const int64_t key = block.first + j;
    while (end < block.queries && mask.visible(block.first_query + end).begin <= key) ++end;
    const Range visible = clip({key, block.first_query + end}, block.first_query, end);
    body(j, mask_row(visible, block.queries, scores + j * block.queries));
  }
}

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
