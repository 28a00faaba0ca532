// The CPU's backward pass of attention.h.
#include <algorithm>
#include <type_traits>

#include "kernels/attention/attention.h"
#include "kernels/cpu/attention_blocks.h"
#include "kernels/inline/vector_math.h"

namespace switchyard::cpu {
namespace {

// Scratch of the backward pass of one key/value head. T is the dtype of the tensors.
template <class T, class Factor>
struct BackwardState {
  static constexpr bool kRounds = !std::is_same_v<T, float>;  // sums are f32 and rounded at the end

  BackwardState(ThreadScratch::Pieces pieces, int64_t seq_len, int64_t head_dim)
      : probabilities(pieces.take(kKeyRows * kQueryRows)),
        dscores(pieces.take(kKeyRows * kQueryRows)),
        delta(pieces.take(kQueryRows)),
        q_transposed(pieces.take_factors<Factor>(kQueryRows * head_dim)),
        dout_transposed(pieces.take_factors<Factor>(kQueryRows * head_dim)) {
    if constexpr (kRounds) {
      for (float** whole : {&dk, &dv}) *whole = pieces.take(seq_len * head_dim);
      dq = pieces.take(kQueryRows * head_dim);
      for (Factor** whole : {&k, &v}) *whole = pieces.take_factors<Factor>(seq_len * head_dim);
      for (Factor** block : {&q, &dout}) {
        *block = pieces.take_factors<Factor>(kQueryRows * head_dim);
      }
      rounded = pieces.take_factors<Factor>(kKeyRows * kQueryRows);
    }
  }

  float *probabilities, *dscores, *delta;
  Factor *q_transposed, *dout_transposed;
  // Only for bf16: sums of the outputs, and copies of what is not stored as Factors.
  float *dk = nullptr, *dv = nullptr, *dq = nullptr;
  Factor *k = nullptr, *v = nullptr, *q = nullptr, *dout = nullptr, *rounded = nullptr;
};

// delta[i] = <dout[i], out[i]>, the part of the softmax's gradient that a row shares.
template <class T>
void row_products(const T* dout, const T* out, int64_t rows, int64_t head_dim, int64_t stride,
                  float* delta) {
  for (int64_t i = 0; i < rows; ++i) {
    const T *x = dout + i * stride, *y = out + i * stride;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < head_dim; ++d)
      sum += static_cast<float>(x[d]) * static_cast<float>(y[d]);
    delta[i] = sum;
  }
}

// A block of queries in the backward pass, [rows, head_dim], and the transposed ones.
template <class Factor>
struct QueryBlock {
  int64_t first, rows;
  Rows<Factor> q, dout, q_transposed, dout_transposed;
  const float* lse;
  const float* delta;
};

// Turns transposed scores and dprobabilities dp of a block into probabilities p and
// dscores = scale p (dp - delta), in place; masked values become 0.
//   lse, delta  [queries]
void softmax_backward(const ScoreBlock& block, const DocumentMask& mask, float scale,
                      const float* lse, const float* delta, float* probabilities, float* dscores) {
  for_masked_rows(block, mask, probabilities, [&](int64_t j, Range range) {
    float* p = probabilities + j * block.queries;
    float* ds = dscores + j * block.queries;
#pragma omp simd
    for (int64_t i = range.begin; i < range.end; ++i) {
      p[i] = fast_exp(scale * p[i] - lse[i]);
      ds[i] = scale * p[i] * (ds[i] - delta[i]);
    }
    std::fill(ds, ds + range.begin, 0.0f);
    std::fill(ds + range.end, ds + block.queries, 0.0f);
  });
}

// FlashAttention-2, algorithm 2, for one block of queries and all keys that the block sees.
//   k, v    [seq_len, head_dim]
//   dq      [rows, head_dim]; overwritten
//   dk, dv  [seq_len, head_dim]  +=
template <class T, class Factor>
void backward_block(const QueryBlock<Factor>& x, Rows<Factor> k, Rows<Factor> v,
                    const DocumentMask& mask, float scale, int64_t head_dim,
                    const BackwardState<T, Factor>& s, float* dq, float* dk, float* dv) {
  std::fill_n(dq, x.rows * head_dim, 0.0f);
  for_score_blocks(mask, x.first, x.rows, [&](const ScoreBlock& block) {
    const auto [first_key, keys, first_query, count] = block;
    const int64_t row = first_query - x.first, at = first_key * head_dim;
    product(k.from(first_key), Transpose::no, x.q_transposed.from_column(row), Transpose::no, keys,
            count, head_dim, Accumulate::no, s.probabilities);
    product(v.from(first_key), Transpose::no, x.dout_transposed.from_column(row), Transpose::no,
            keys, count, head_dim, Accumulate::no, s.dscores);
    softmax_backward(block, mask, scale, x.lse + row, x.delta + row, s.probabilities, s.dscores);
    product(as_factor(s.probabilities, keys, count, count, s.rounded), Transpose::no,
            x.dout.from(row), Transpose::no, keys, head_dim, count, Accumulate::yes, dv + at);
    const Rows<Factor> ds = as_factor(s.dscores, keys, count, count, s.rounded);
    product(ds, Transpose::no, x.q.from(row), Transpose::no, keys, head_dim, count, Accumulate::yes,
            dk + at);
    product(ds, Transpose::yes, k.from(first_key), Transpose::no, count, head_dim, keys,
            Accumulate::yes, dq + row * head_dim);
  });
}

template <class T>
void round_to(const float* in, int64_t count, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = in[i];
}

struct BackwardOperands {
  ConstTensorView dout, q, k, v, out, lse, document_start;
  float scale;
  TensorView dq, dk, dv;
};

// Computes one query head of the group; adds to dk and dv.
template <class T, class Factor>
void backward_head(const AttentionShape& shape, const BackwardOperands& x, int64_t b, int64_t h,
                   Rows<Factor> k, Rows<Factor> v, const BackwardState<T, Factor>& s, float* dk,
                   float* dv) {
  const auto [batch, heads, kv_heads, seq_len, head_dim] = shape;
  const DocumentMask mask(x.document_start, b);
  const int64_t head = b * heads + h, stride = heads * head_dim;
  for (int64_t first = 0; first < seq_len; first += kQueryRows) {
    const int64_t rows = std::min(kQueryRows, seq_len - first);
    const int64_t in_head = (head * seq_len + first) * head_dim;
    const int64_t in_tokens = ((b * seq_len + first) * heads + h) * head_dim;
    const T *q = x.q.data<T>() + in_head, *dout = x.dout.data<T>() + in_tokens;
    row_products(dout, x.out.data<T>() + in_tokens, rows, head_dim, stride, s.delta);
    const QueryBlock<Factor> block = {
        .first = first,
        .rows = rows,
        .q = as_factor(q, rows, head_dim, head_dim, s.q),
        .dout = as_factor(dout, rows, head_dim, stride, s.dout),
        .q_transposed = transposed(q, rows, head_dim, head_dim, s.q_transposed),
        .dout_transposed = transposed(dout, rows, head_dim, stride, s.dout_transposed),
        .lse = x.lse.data<float>() + head * seq_len + first,
        .delta = s.delta};
    T* dq = x.dq.data<T>() + in_head;
    if constexpr (BackwardState<T, Factor>::kRounds) {
      backward_block(block, k, v, mask, x.scale, head_dim, s, s.dq, dk, dv);
      round_to(s.dq, rows * head_dim, dq);
    } else {
      backward_block(block, k, v, mask, x.scale, head_dim, s, dq, dk, dv);
    }
  }
}

template <class T, class Factor>
void backward(const AttentionShape& shape, Workspace& workspace, const BackwardOperands& x) {
  using State = BackwardState<T, Factor>;
  const int64_t batch = shape.batch, kv_heads = shape.kv_heads;
  const int64_t seq_len = shape.seq_len, head_dim = shape.head_dim;
  const int64_t head_size = seq_len * head_dim, group = shape.group();
  WorkspaceScope scope(workspace);
  const ThreadScratch scratch = attention_backward_scratch(workspace, shape, dtype_of<T>());
// One thread owns a key/value head, so that its sums over query heads and blocks keep their order.
#pragma omp parallel for schedule(dynamic)
  for (int64_t kv_head = 0; kv_head < batch * kv_heads; ++kv_head) {
    const State state(scratch.mine(), seq_len, head_dim);
    const int64_t b = kv_head / kv_heads, offset = kv_head * head_size;
    const auto k = as_factor(x.k.data<T>() + offset, seq_len, head_dim, head_dim, state.k);
    const auto v = as_factor(x.v.data<T>() + offset, seq_len, head_dim, head_dim, state.v);
    T *dk_out = x.dk.data<T>() + offset, *dv_out = x.dv.data<T>() + offset;
    float *dk = state.dk, *dv = state.dv;
    if constexpr (!State::kRounds) dk = dk_out, dv = dv_out;
    std::fill_n(dk, head_size, 0.0f);
    std::fill_n(dv, head_size, 0.0f);
    for (int64_t h = kv_head % kv_heads * group, end = h + group; h < end; ++h) {
      backward_head(shape, x, b, h, k, v, state, dk, dv);
    }
    if constexpr (State::kRounds) {
      round_to(dk, head_size, dk_out);
      round_to(dv, head_size, dv_out);
    }
  }
}

}  // namespace

ThreadScratch attention_backward_scratch(Workspace& workspace, const AttentionShape& shape,
                                         DType dtype) {
  const auto [batch, heads, kv_heads, seq_len, head_dim] = shape;
  const int64_t block = kQueryRows * head_dim, scores = kKeyRows * kQueryRows;
  const int64_t floats = 2 * scores + kQueryRows + 2 * block;
  const int64_t of_bf16 = 4 * seq_len * head_dim + 3 * block + scores;
  return ThreadScratch(workspace, dtype == DType::f32 ? floats : floats + of_bf16);
}

void attention_backward(Stream&, Workspace& workspace, ConstTensorView dout, ConstTensorView q,
                        ConstTensorView k, ConstTensorView v, ConstTensorView out,
                        ConstTensorView lse, ConstTensorView document_start, float scale,
                        TensorView dq, TensorView dk, TensorView dv) {
  require_documents(document_start);
  dispatch_factors(q.dtype(), [&]<class T, class Factor>() {
    backward<T, Factor>(shape_of(q, k), workspace,
                        {dout, q, k, v, out, lse, document_start, scale, dq, dk, dv});
  });
}

}  // namespace switchyard::cpu
