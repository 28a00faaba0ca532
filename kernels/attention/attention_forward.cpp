// The CPU's forward pass of attention.h.
#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/cpu/attention_blocks.h"
#include "kernels/inline/vector_math.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard::cpu {
namespace {

// Queries of one head, with the running softmax over the keys so far (FlashAttention-2, algorithm
// 1): rows of `out` are sums of exp(scale (score - max)) v, not yet divided by `sum`.
template <class Factor>
struct QueryState {
  QueryState(ThreadScratch::Pieces pieces, int64_t head_dim)
      : q(pieces.take_factors<Factor>(kQueryRows * head_dim)),
        out(pieces.take(kQueryRows * head_dim)),
        max(pieces.take(kQueryRows)),
        sum(pieces.take(kQueryRows)),
        shift(pieces.take(kQueryRows)),
        scores(pieces.take(kQueryRows * kKeyRows)),
        k(pieces.take_factors<Factor>(kKeyRows * head_dim)),
        v(pieces.take_factors<Factor>(kKeyRows * head_dim)),
        probabilities(pieces.take_factors<Factor>(kQueryRows * kKeyRows)) {}

  Factor* q;  // transposed
  float *out, *max, *sum, *shift, *scores;
  Factor *k, *v, *probabilities;  // copies, where the operands are not Factors
};

// Raises the maxima of the block's queries by its masked scores; sums of exponentials and of values
// are scaled down to the new ones.
//   max, sum  [queries]
//   out       [queries, head_dim]
//   shift     [queries]; becomes scale * max
void raise_maxima(const ScoreBlock& block, const Range* ranges, float scale, int64_t head_dim,
                  const float* scores, float* max, float* sum, float* shift, float* out) {
  std::copy_n(max, block.queries, shift);  // the old maxima
  for (int64_t j = 0; j < block.count; ++j) {
    const float* row = scores + j * block.queries;
#pragma omp simd
    for (int64_t i = ranges[j].begin; i < ranges[j].end; ++i) {
      max[i] = row[i] > max[i] ? row[i] : max[i];
    }
  }
  for (int64_t i = 0; i < block.queries; ++i) {
    const float before = shift[i];
    // A query that has seen no key yet has the maximum -infinity.
    shift[i] = max[i] > -kInfinity ? scale * max[i] : 0.0f;
    if (max[i] == before || before == -kInfinity) continue;
    const float factor = fast_exp(scale * (before - max[i]));
    sum[i] *= factor;
#pragma omp simd
    for (int64_t d = 0; d < head_dim; ++d) out[i * head_dim + d] *= factor;
  }
}

// Turns the transposed scores of a block into exp(scale (score - max)), 0 where a query does not
// see the key. The arrays are those of raise_maxima.
void softmax_block(const ScoreBlock& block, const DocumentMask& mask, float scale, int64_t head_dim,
                   float* scores, float* max, float* sum, float* shift, float* out) {
  std::array<Range, kKeyRows> ranges;
  for_masked_rows(block, mask, scores, [&](int64_t j, Range range) { ranges[j] = range; });
  raise_maxima(block, ranges.data(), scale, head_dim, scores, max, sum, shift, out);
  for (int64_t j = 0; j < block.count; ++j) {
    float* row = scores + j * block.queries;
#pragma omp simd
    for (int64_t i = ranges[j].begin; i < ranges[j].end; ++i) {
      row[i] = fast_exp(scale * row[i] - shift[i]);
      sum[i] += row[i];
    }
  }
}

// Attends from the queries [first, first + rows) of one head to all keys that they see.
//   q     [rows, head_dim], from `first` on
//   k, v  [seq_len, head_dim]
template <class T, class Factor>
void attend(const T* q, int64_t first, int64_t rows, const T* k, const T* v, int64_t head_dim,
            float scale, const DocumentMask& mask, const QueryState<Factor>& s) {
  const Rows<Factor> queries = transposed(q, rows, head_dim, head_dim, s.q);
  std::fill_n(s.max, rows, -kInfinity);
  std::fill_n(s.sum, rows, 0.0f);
  std::fill_n(s.out, rows * head_dim, 0.0f);
  for_score_blocks(mask, first, rows, [&](const ScoreBlock& block) {
    const auto [first_key, keys, first_query, count] = block;
    const int64_t row = first_query - first;
    const auto k_rows = as_factor(k + first_key * head_dim, keys, head_dim, head_dim, s.k);
    const auto v_rows = as_factor(v + first_key * head_dim, keys, head_dim, head_dim, s.v);
    float* out = s.out + row * head_dim;
    product(k_rows, Transpose::no, queries.from_column(row), Transpose::no, keys, count, head_dim,
            Accumulate::no, s.scores);
    softmax_block(block, mask, scale, head_dim, s.scores, s.max + row, s.sum + row, s.shift + row,
                  out);
    product(as_factor(s.scores, keys, count, count, s.probabilities), Transpose::yes, v_rows,
            Transpose::no, count, head_dim, keys, Accumulate::yes, out);
  });
}

// out[i] = the finished row i, `stride` elements apart.
template <class T, class Factor>
void write_rows(const QueryState<Factor>& s, int64_t rows, int64_t head_dim, int64_t stride,
                T* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* in = s.out + i * head_dim;
    T* row = out + i * stride;
    const float factor = 1.0f / s.sum[i];
#pragma omp simd
    for (int64_t d = 0; d < head_dim; ++d) row[d] = in[d] * factor;
  }
}

template <class T, class Factor>
void forward(const AttentionShape& shape, Workspace& workspace, ConstTensorView q,
             ConstTensorView k, ConstTensorView v, ConstTensorView document_start, float scale,
             TensorView out, TensorView lse) {
  const int64_t batch = shape.batch, heads = shape.heads, kv_heads = shape.kv_heads;
  const int64_t seq_len = shape.seq_len, head_dim = shape.head_dim;
  const int64_t head_size = seq_len * head_dim, group = shape.group();
  const int64_t blocks = (seq_len + kQueryRows - 1) / kQueryRows;
  WorkspaceScope scope(workspace);
  const ThreadScratch scratch = attention_forward_scratch(workspace, shape);
// Every block of queries has its own output, so any distribution gives the same numbers. Blocks
// differ in work; the longest come first.
#pragma omp parallel for schedule(dynamic)
  for (int64_t item = 0; item < batch * heads * blocks; ++item) {
    const int64_t head = item / blocks;  // of the whole batch
    const int64_t b = head / heads, h = head % heads;
    const int64_t first = (blocks - 1 - item % blocks) * kQueryRows;
    const int64_t rows = std::min(kQueryRows, seq_len - first);
    const int64_t kv = (b * kv_heads + h / group) * head_size;
    const DocumentMask mask(document_start, b);
    const QueryState<Factor> state(scratch.mine(), head_dim);
    attend(q.data<T>() + head * head_size + first * head_dim, first, rows, k.data<T>() + kv,
           v.data<T>() + kv, head_dim, scale, mask, state);
    write_rows(state, rows, head_dim, heads * head_dim,
               out.data<T>() + ((b * seq_len + first) * heads + h) * head_dim);
    float* lse_rows = lse.data<float>() + head * seq_len + first;
    for (int64_t i = 0; i < rows; ++i) {
      lse_rows[i] = scale * state.max[i] + std::log(state.sum[i]);
    }
  }
}

}  // namespace

ThreadScratch attention_forward_scratch(Workspace& workspace, const AttentionShape& shape) {
  return ThreadScratch(workspace, kQueryRows * (2 * shape.head_dim + 3 + 2 * kKeyRows) +
                                      2 * kKeyRows * shape.head_dim);
}

void attention_forward(Stream&, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                       ConstTensorView v, ConstTensorView document_start, float scale,
                       TensorView out, TensorView lse) {
  require_documents(document_start);
  dispatch_factors(q.dtype(), [&]<class T, class Factor>() {
    forward<T, Factor>(shape_of(q, k), workspace, q, k, v, document_start, scale, out, lse);
  });
}

}  // namespace switchyard::cpu
