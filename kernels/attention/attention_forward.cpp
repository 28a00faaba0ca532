// The CPU's forward pass of attention.h.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/cpu/attention_blocks.h"
#include "kernels/inline/vector_math.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard::cpu {
namespace {

// Queries of one head, with the running softmax over the keys so far (FlashAttention-2, algorithm
// 1): rows of `out` are sums of exp(scale (score - max)) v, not yet divided by `sum`.
struct QueryState {
  static int64_t floats(int64_t head_dim) {
    return kQueryRows * (2 * head_dim + 2 + kKeyRows) + 2 * kKeyRows * head_dim;
  }

  QueryState(ThreadScratch::Pieces pieces, int64_t head_dim)
      : q(pieces.take(kQueryRows * head_dim)),
        out(pieces.take(kQueryRows * head_dim)),
        max(pieces.take(kQueryRows)),
        sum(pieces.take(kQueryRows)),
        scores(pieces.take(kQueryRows * kKeyRows)),
        k(pieces.take(kKeyRows * head_dim)),
        v(pieces.take(kKeyRows * head_dim)) {}

  float *q, *out, *max, *sum, *scores;
  float *k, *v;  // only for bf16
};

// Turns the scores of one query into exp(scale (score - max)), 0 outside `visible`. If the maximum
// rises, the previous sums are scaled down.
void softmax_row(float scale, Range visible, int64_t count, int64_t head_dim, float* scores,
                 float& max, float& sum, float* out) {
  const Range masked = mask_row(visible, count, scores);
  const int64_t begin = masked.begin, end = masked.end;
  float row_max = max;
#pragma omp simd reduction(max : row_max)
  for (int64_t j = begin; j < end; ++j) row_max = scores[j] > row_max ? scores[j] : row_max;
  if (row_max > max && max > -kInfinity) {
    const float factor = fast_exp(scale * (max - row_max));
    sum *= factor;
#pragma omp simd
    for (int64_t d = 0; d < head_dim; ++d) out[d] *= factor;
  }
  max = row_max;

  const float shift = scale * row_max;
  float row_sum = 0.0f;
#pragma omp simd reduction(+ : row_sum)
  for (int64_t j = begin; j < end; ++j) {
    scores[j] = fast_exp(scale * scores[j] - shift);
    row_sum += scores[j];
  }
  sum += row_sum;
}

// Attends from `rows` queries to the keys [keys.begin, keys.end) of one head; visible_of(i) is the
// range of keys that query i sees.
template <class T, class VisibleOf>
void attend(const T* q, int64_t rows, const T* k, const T* v, int64_t head_dim, float scale,
            Range keys, const VisibleOf& visible_of, QueryState& s) {
  const Rows queries = as_f32(q, rows, head_dim, head_dim, s.q);
  std::fill_n(s.max, rows, -kInfinity);
  std::fill_n(s.sum, rows, 0.0f);
  for (int64_t first = keys.begin; first < keys.end; first += kKeyRows) {
    const int64_t count = std::min(kKeyRows, keys.end - first);
    const Rows k_block = as_f32(k + first * head_dim, count, head_dim, head_dim, s.k);
    const Rows v_block = as_f32(v + first * head_dim, count, head_dim, head_dim, s.v);
    product(queries, Transpose::no, k_block, Transpose::yes, rows, count, head_dim, Accumulate::no,
            s.scores);
    for (int64_t i = 0; i < rows; ++i) {
      softmax_row(scale, clip(visible_of(i), first, count), count, head_dim, s.scores + i * count,
                  s.max[i], s.sum[i], s.out + i * head_dim);
    }
    product({s.scores, count}, Transpose::no, v_block, Transpose::no, rows, head_dim, count,
            first == keys.begin ? Accumulate::no : Accumulate::yes, s.out);
  }
}

// out[i] = the finished row i, `stride` elements apart.
template <class T>
void write_rows(const QueryState& s, int64_t rows, int64_t head_dim, int64_t stride, T* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* in = s.out + i * head_dim;
    T* row = out + i * stride;
    const float factor = 1.0f / s.sum[i];
#pragma omp simd
    for (int64_t d = 0; d < head_dim; ++d) row[d] = in[d] * factor;
  }
}

template <class T>
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
    QueryState state(scratch.mine(), head_dim);
    attend(
        q.data<T>() + head * head_size + first * head_dim, rows, k.data<T>() + kv, v.data<T>() + kv,
        head_dim, scale, {mask.visible(first).begin, first + rows},
        [&](int64_t i) { return mask.visible(first + i); }, state);
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
  return ThreadScratch(workspace, QueryState::floats(shape.head_dim));
}

void attention_forward(Stream&, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                       ConstTensorView v, ConstTensorView document_start, float scale,
                       TensorView out, TensorView lse) {
  require_documents(document_start);
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    forward<T>(shape_of(q, k), workspace, q, k, v, document_start, scale, out, lse);
  });
}

}  // namespace switchyard::cpu
