// The CPU's backward pass of attention.h.
#include <algorithm>
#include <type_traits>

#include "kernels/attention/attention.h"
#include "kernels/cpu/attention_blocks.h"
#include "kernels/inline/vector_math.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard::cpu {
namespace {

// Scratch of the backward pass of one key/value head. Scores are stored transposed, [keys,
// queries]: then only one of the five products has a transposed first operand.
template <class T>
struct BackwardState {
  static constexpr bool kWidened = !std::is_same_v<T, float>;

  static int64_t floats(int64_t seq_len, int64_t head_dim) {
    return 2 * kKeyRows * kQueryRows + kQueryRows +
           (kWidened ? (4 * seq_len + 3 * kQueryRows) * head_dim : 0);
  }

  BackwardState(ThreadScratch::Pieces pieces, int64_t seq_len, int64_t head_dim)
      : probabilities(pieces.take(kKeyRows * kQueryRows)),
        dscores(pieces.take(kKeyRows * kQueryRows)),
        delta(pieces.take(kQueryRows)) {
    if constexpr (kWidened) {
      for (float** whole : {&k, &v, &dk, &dv}) *whole = pieces.take(seq_len * head_dim);
      for (float** block : {&q, &dout, &dq}) *block = pieces.take(kQueryRows * head_dim);
    }
  }

  float *probabilities, *dscores, *delta;
  // Only for bf16: f32 copies of the inputs, and f32 accumulators for the outputs.
  float *k = nullptr, *v = nullptr, *dk = nullptr, *dv = nullptr;
  float *q = nullptr, *dout = nullptr, *dq = nullptr;
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

// A block of queries in the backward pass, f32.
struct QueryBlock {
  int64_t first, rows;
  Rows q, dout;
  const float* lse;
  const float* delta;
};

// Turns transposed scores and dprobabilities dp [keys, queries] into probabilities p and
// dscores = scale p (dp - delta), in place; masked values become 0.
void softmax_backward(const QueryBlock& block, const DocumentMask& mask, float scale,
                      int64_t first_key, int64_t keys, float* probabilities, float* dscores) {
  int64_t end = 0;  // queries from here on belong to documents that begin after the key
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t key = first_key + j;
    while (end < block.rows && mask.visible(block.first + end).begin <= key) ++end;
    const Range visible = clip({key, block.first + end}, block.first, end);
    float* p = probabilities + j * block.rows;
    float* ds = dscores + j * block.rows;
    const Range range = mask_row(visible, block.rows, p);
#pragma omp simd
    for (int64_t i = range.begin; i < range.end; ++i) {
      p[i] = fast_exp(scale * p[i] - block.lse[i]);
      ds[i] = scale * p[i] * (ds[i] - block.delta[i]);
    }
    std::fill(ds, ds + range.begin, 0.0f);
    std::fill(ds + range.end, ds + block.rows, 0.0f);
  }
}

// FlashAttention-2, algorithm 2, for one block of queries and all keys that the block sees.
//   k, v    [seq_len, head_dim]
//   dq      [rows, head_dim]; overwritten
//   dk, dv  [seq_len, head_dim]  +=
template <class T>
void backward_block(const QueryBlock& block, Rows k, Rows v, const DocumentMask& mask, float scale,
                    int64_t head_dim, const BackwardState<T>& s, float* dq, float* dk, float* dv) {
  const Range keys = {mask.visible(block.first).begin, block.first + block.rows};
  for (int64_t first = keys.begin; first < keys.end; first += kKeyRows) {
    const int64_t count = std::min(kKeyRows, keys.end - first), rows = block.rows;
    const Rows k_block = {k.data + first * k.stride, k.stride};
    const Rows v_block = {v.data + first * v.stride, v.stride};
    product(k_block, Transpose::no, block.q, Transpose::yes, count, rows, head_dim, Accumulate::no,
            s.probabilities);
    product(v_block, Transpose::no, block.dout, Transpose::yes, count, rows, head_dim,
            Accumulate::no, s.dscores);
    softmax_backward(block, mask, scale, first, count, s.probabilities, s.dscores);
    product({s.probabilities, rows}, Transpose::no, block.dout, Transpose::no, count, head_dim,
            rows, Accumulate::yes, dv + first * head_dim);
    product({s.dscores, rows}, Transpose::no, block.q, Transpose::no, count, head_dim, rows,
            Accumulate::yes, dk + first * head_dim);
    product({s.dscores, rows}, Transpose::yes, k_block, Transpose::no, rows, head_dim, count,
            first == keys.begin ? Accumulate::no : Accumulate::yes, dq);
  }
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
template <class T>
void backward_head(const AttentionShape& shape, const BackwardOperands& x, int64_t b, int64_t h,
                   Rows k, Rows v, const BackwardState<T>& s, float* dk, float* dv) {
  const auto [batch, heads, kv_heads, seq_len, head_dim] = shape;
  const DocumentMask mask(x.document_start, b);
  const int64_t head = b * heads + h, stride = heads * head_dim;
  for (int64_t first = 0; first < seq_len; first += kQueryRows) {
    const int64_t rows = std::min(kQueryRows, seq_len - first);
    const int64_t in_head = (head * seq_len + first) * head_dim;
    const int64_t in_tokens = ((b * seq_len + first) * heads + h) * head_dim;
    row_products(x.dout.data<T>() + in_tokens, x.out.data<T>() + in_tokens, rows, head_dim, stride,
                 s.delta);
    const QueryBlock block = {
        .first = first,
        .rows = rows,
        .q = as_f32(x.q.data<T>() + in_head, rows, head_dim, head_dim, s.q),
        .dout = as_f32(x.dout.data<T>() + in_tokens, rows, head_dim, stride, s.dout),
        .lse = x.lse.data<float>() + head * seq_len + first,
        .delta = s.delta};
    T* dq = x.dq.data<T>() + in_head;
    if constexpr (BackwardState<T>::kWidened) {
      backward_block(block, k, v, mask, x.scale, head_dim, s, s.dq, dk, dv);
      round_to(s.dq, rows * head_dim, dq);
    } else {
      backward_block(block, k, v, mask, x.scale, head_dim, s, dq, dk, dv);
    }
  }
}

template <class T>
void backward(const AttentionShape& shape, Workspace& workspace, const BackwardOperands& x) {
  const int64_t batch = shape.batch, kv_heads = shape.kv_heads;
  const int64_t seq_len = shape.seq_len, head_dim = shape.head_dim;
  const int64_t head_size = seq_len * head_dim, group = shape.group();
  WorkspaceScope scope(workspace);
  const ThreadScratch scratch = attention_backward_scratch(workspace, shape, dtype_of<T>());
// One thread owns a key/value head, so that its sums over query heads and blocks keep their order.
#pragma omp parallel for schedule(dynamic)
  for (int64_t kv_head = 0; kv_head < batch * kv_heads; ++kv_head) {
    const BackwardState<T> state(scratch.mine(), seq_len, head_dim);
    const int64_t b = kv_head / kv_heads, offset = kv_head * head_size;
    const Rows k = as_f32(x.k.data<T>() + offset, seq_len, head_dim, head_dim, state.k);
    const Rows v = as_f32(x.v.data<T>() + offset, seq_len, head_dim, head_dim, state.v);
    T *dk_out = x.dk.data<T>() + offset, *dv_out = x.dv.data<T>() + offset;
    float *dk = state.dk, *dv = state.dv;
    if constexpr (!BackwardState<T>::kWidened) dk = dk_out, dv = dv_out;
    std::fill_n(dk, head_size, 0.0f);
    std::fill_n(dv, head_size, 0.0f);
    for (int64_t h = kv_head % kv_heads * group, end = h + group; h < end; ++h) {
      backward_head(shape, x, b, h, k, v, state, dk, dv);
    }
    if constexpr (BackwardState<T>::kWidened) {
      round_to(dk, head_size, dk_out);
      round_to(dv, head_size, dv_out);
    }
  }
}

}  // namespace

ThreadScratch attention_backward_scratch(Workspace& workspace, const AttentionShape& shape,
                                         DType dtype) {
  const auto [batch, heads, kv_heads, seq_len, head_dim] = shape;
  return ThreadScratch(workspace, dtype == DType::f32
                                      ? BackwardState<float>::floats(seq_len, head_dim)
                                      : BackwardState<bfloat16>::floats(seq_len, head_dim));
}

void attention_backward(Stream&, Workspace& workspace, ConstTensorView dout, ConstTensorView q,
                        ConstTensorView k, ConstTensorView v, ConstTensorView out,
                        ConstTensorView lse, ConstTensorView document_start, float scale,
                        TensorView dq, TensorView dk, TensorView dv) {
  require_documents(document_start);
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    backward<T>(shape_of(q, k), workspace,
                {dout, q, k, v, out, lse, document_start, scale, dq, dk, dv});
  });
}

}  // namespace switchyard::cpu
