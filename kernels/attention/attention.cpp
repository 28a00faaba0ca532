#include "kernels/attention/attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/cuda/scratch.h"
#include "kernels/decode/attend_cached.h"
#include "kernels/inline/vector_math.h"
#include "kernels/linear/block_product.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

// A block of scores, 256 KiB, stays in the L2 cache beside its operands, and is large enough for
// oneDNN's products to run at full speed.
constexpr int64_t kQueryRows = 128;
constexpr int64_t kKeyRows = 512;

constexpr int64_t kVectorFloats = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct AttentionShape {
  int64_t batch, heads, kv_heads, seq_len, head_dim;

  int64_t group() const { return heads / kv_heads; }  // query heads of one key/value head
};

AttentionShape shape_of(ConstTensorView q, ConstTensorView k) {
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
void product(Rows a, Transpose transpose_a, Rows b, Transpose transpose_b, int64_t m, int64_t n,
             int64_t k, Accumulate accumulate, float* c) {
  multiply_block(m, n, k, {a.data, a.stride, transpose_a}, {b.data, b.stride, transpose_b},
                 accumulate, c);
}

// One row of scratch per OpenMP thread, whatever part of a parallel loop it gets.
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

// Queries of one head, with what the running softmax knows of the keys so far (FlashAttention-2,
// algorithm 1): rows of `out` are sums of exp(scale (score - max)) v, not yet divided by `sum`.
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

struct Range {
  int64_t begin, end;
};

// The part of `range` in [first, first + count), counted from first; perhaps empty.
Range clip(Range range, int64_t first, int64_t count) {
  const int64_t begin = std::clamp<int64_t>(range.begin - first, 0, count);
  return {begin, std::clamp<int64_t>(range.end - first, begin, count)};
}

// Masks a row of scores outside `visible`: with -infinity up to the next whole vector, since scalar
// tails would cost more than the vectors themselves, with 0 beyond. Returns the widened range,
// which is all that a loop over exp(score) must visit.
Range mask_row(Range visible, int64_t count, float* scores) {
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

// Turns the scores of one query into exp(scale (score - max)), 0 outside `visible`. Where the
// maximum rises, what was summed before is scaled down.
void softmax_row(float scale, Range visible, int64_t count, int64_t head_dim, float* scores,
                 float& max, float& sum, float* out) {
  const auto [begin, end] = mask_row(visible, count, scores);
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

// The documents of one sequence.
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

void require_documents(ConstTensorView document_start) {
  if (!document_start) return;
  const int32_t* start = document_start.data<int32_t>();
  const int64_t seq_len = document_start.dim(1);
  for (int64_t i = 0; i < document_start.num_elements(); ++i) {
    const int64_t t = i % seq_len;
    require(start[i] >= (t == 0 ? 0 : start[i - 1]) && start[i] <= t,
            "document_start[{}][{}] is {}: must not decrease, and be at most the position",
            i / seq_len, t, start[i]);
  }
}

ThreadScratch forward_scratch(Workspace& workspace, const AttentionShape& shape) {
  return ThreadScratch(workspace, QueryState::floats(shape.head_dim));
}

template <class T>
void forward(const AttentionShape& shape, Workspace& workspace, ConstTensorView q,
             ConstTensorView k, ConstTensorView v, ConstTensorView document_start, float scale,
             TensorView out, TensorView lse) {
  const auto [batch, heads, kv_heads, seq_len, head_dim] = shape;
  const int64_t head_size = seq_len * head_dim, group = shape.group();
  const int64_t blocks = (seq_len + kQueryRows - 1) / kQueryRows;
  WorkspaceScope scope(workspace);
  const ThreadScratch scratch = forward_scratch(workspace, shape);
// Every block of queries has its own output, so any distribution gives the same numbers; the work
// in them differs. The longest come first.
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

// What the backward pass of one key/value head works on. Scores are kept transposed, [keys,
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
  // For bf16: f32 copies, and accumulators in place of the outputs.
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

// From transposed scores and dprobabilities [keys, queries] to probabilities and
// dscores = scale p (dp - delta), in place; 0 where the mask forbids.
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

// FlashAttention-2, algorithm 2, for one block of queries against all keys that it sees.
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

// One query head of the group; adds to dk and dv.
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

ThreadScratch backward_scratch(Workspace& workspace, const AttentionShape& shape, DType dtype) {
  const auto [batch, heads, kv_heads, seq_len, head_dim] = shape;
  return ThreadScratch(workspace, dtype == DType::f32
                                      ? BackwardState<float>::floats(seq_len, head_dim)
                                      : BackwardState<bfloat16>::floats(seq_len, head_dim));
}

template <class T>
void backward(const AttentionShape& shape, Workspace& workspace, const BackwardOperands& x) {
  const auto [batch, heads, kv_heads, seq_len, head_dim] = shape;
  const int64_t head_size = seq_len * head_dim, group = shape.group();
  WorkspaceScope scope(workspace);
  const ThreadScratch scratch = backward_scratch(workspace, shape, dtype_of<T>());
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

AttentionShape require_operands(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                ConstTensorView document_start, float scale) {
  require(q.rank() == 4 && k.rank() == 4, "q has shape {} and k {}, expected four dimensions each",
          to_string(q.shape()), to_string(k.shape()));
  const AttentionShape shape = shape_of(q, k);
  require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0,
          "{} query heads cannot share {} key/value heads", shape.heads, shape.kv_heads);
  require_shape(k, {shape.batch, shape.kv_heads, shape.seq_len, shape.head_dim}, "k");
  require_shape(v, k.shape(), "v");
  require_dtype(k, q.dtype(), "k");
  require_dtype(v, q.dtype(), "v");
  if (document_start) {
    require_shape(document_start, {shape.batch, shape.seq_len}, "document_start");
    require_dtype(document_start, DType::i32, "document_start");
  }
  require(scale > 0.0f, "scale is {}, must be positive", scale);
  return shape;
}

// Products of [seq_len, head_dim] with half of the scores, the diagonal included.
void count_products(Stream& stream, const AttentionShape& shape, int products) {
  Tally* tally = stream.tally();
  if (tally == nullptr) return;
  const auto keys = 0.5 * static_cast<double>(shape.seq_len + 1);
  const auto width = static_cast<double>(shape.heads * shape.head_dim);
  tally->attention +=
      products * 2.0 * static_cast<double>(shape.batch * shape.seq_len) * width * keys;
}

void require_outputs(const AttentionShape& shape, DType dtype, ConstTensorView out,
                     const char* name, ConstTensorView lse) {
  require_shape(out, {shape.batch * shape.seq_len, shape.heads * shape.head_dim}, name);
  require_dtype(out, dtype, name);
  require_shape(lse, {shape.batch, shape.heads, shape.seq_len}, "lse");
  require_dtype(lse, DType::f32, "lse");
}

void require_like(ConstTensorView x, ConstTensorView other, const char* name) {
  require_shape(x, other.shape(), name);
  require_dtype(x, other.dtype(), name);
}

}  // namespace

void attention_forward(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                       ConstTensorView v, ConstTensorView document_start, float scale,
                       TensorView out, TensorView lse) {
  const AttentionShape shape = require_operands(q, k, v, document_start, scale);
  require_outputs(shape, q.dtype(), out, "out", lse);
  count_products(stream, shape, /*products=*/2);
  count_scratch(
      stream, workspace, [&] { forward_scratch(workspace, shape); }, no_scratch);
  SWITCHYARD_BODY(stream, attention_forward)
  (stream, workspace, q, k, v, document_start, scale, out, lse);
}

void attention_backward(Stream& stream, Workspace& workspace, ConstTensorView dout,
                        ConstTensorView q, ConstTensorView k, ConstTensorView v,
                        ConstTensorView out, ConstTensorView lse, ConstTensorView document_start,
                        float scale, TensorView dq, TensorView dk, TensorView dv) {
  const AttentionShape shape = require_operands(q, k, v, document_start, scale);
  require_outputs(shape, q.dtype(), out, "out", lse);
  require_like(dout, out, "dout");
  require_like(dq, q, "dq");
  require_like(dk, k, "dk");
  require_like(dv, v, "dv");
  count_products(stream, shape, /*products=*/4);
  count_scratch(
      stream, workspace, [&] { backward_scratch(workspace, shape, q.dtype()); },
      [&] { cuda::attention_backward_scratch(workspace, q); });
  SWITCHYARD_BODY(stream, attention_backward)
  (stream, workspace, dout, q, k, v, out, lse, document_start, scale, dq, dk, dv);
}

void append_to_cache(Stream& stream, ConstTensorView x, int64_t first_position, TensorView cache) {
  require(x.rank() == 4 && cache.rank() == 4, "x and cache must be [batch, heads, len, head_dim]");
  require_shape(cache, {x.dim(0), x.dim(1), cache.dim(2), x.dim(3)}, "cache");
  require_dtype(cache, x.dtype(), "cache");
  require(first_position >= 0 && first_position + x.dim(2) <= cache.dim(2),
          "the KV cache holds {} positions, {} are needed", cache.dim(2),
          first_position + x.dim(2));
  SWITCHYARD_BODY(stream, append_to_cache)(stream, x, first_position, cache);
}

void decode_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                      ConstTensorView k_cache, ConstTensorView v_cache, ConstTensorView lengths,
                      float scale, TensorView out) {
  require(q.rank() == 3 && k_cache.rank() == 4,
          "q has shape {} and k_cache {}, expected three and four dimensions", to_string(q.shape()),
          to_string(k_cache.shape()));
  const int64_t batch = q.dim(0), heads = q.dim(1), kv_heads = k_cache.dim(1);
  require(kv_heads > 0 && heads % kv_heads == 0, "{} query heads cannot share {} key/value heads",
          heads, kv_heads);
  require_shape(k_cache, {batch, kv_heads, k_cache.dim(2), q.dim(2)}, "k_cache");
  require_dtype(k_cache, q.dtype(), "k_cache");
  require_like(v_cache, k_cache, "v_cache");
  require_shape(lengths, {batch}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(out, {batch, heads * q.dim(2)}, "out");
  require_dtype(out, q.dtype(), "out");
  require(scale > 0.0f, "scale is {}, must be positive", scale);
  count_scratch(
      stream, workspace, [&] { cpu::count_attend_cached(workspace, q, k_cache, {}); },
      [&] { cuda::attend_cached_scratch(workspace, q, k_cache, {}); });
  SWITCHYARD_BODY(stream, decode_attention)
  (stream, workspace, q, k_cache, v_cache, lengths, scale, out);
}

namespace cpu {

void attention_forward(Stream&, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                       ConstTensorView v, ConstTensorView document_start, float scale,
                       TensorView out, TensorView lse) {
  require_documents(document_start);
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    forward<T>(shape_of(q, k), workspace, q, k, v, document_start, scale, out, lse);
  });
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

void decode_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                      ConstTensorView k_cache, ConstTensorView v_cache, ConstTensorView lengths,
                      float scale, TensorView out) {
  for (int64_t b = 0; b < lengths.dim(0); ++b) {
    const int32_t length = lengths.data<int32_t>()[b];
    require(length >= 1 && length <= k_cache.dim(2),
            "lengths[{}] is {}, expected 1 to {} cached positions", b, length, k_cache.dim(2));
  }
  attend_cached(stream, workspace, q, k_cache, v_cache, {}, lengths, scale, out);
}

void append_to_cache(Stream&, ConstTensorView x, int64_t first_position, TensorView cache) {
  const int64_t rows = x.dim(2), max_len = cache.dim(2);
  const size_t row_bytes = static_cast<size_t>(x.dim(3)) * size_of(x.dtype());
  const auto* source = static_cast<const std::byte*>(x.raw());
  auto* target = static_cast<std::byte*>(cache.raw());
  for (int64_t head = 0; head < x.dim(0) * x.dim(1); ++head) {
    std::memcpy(target + static_cast<size_t>(head * max_len + first_position) * row_bytes,
                source + static_cast<size_t>(head * rows) * row_bytes,
                static_cast<size_t>(rows) * row_bytes);
  }
}

}  // namespace cpu

}  // namespace switchyard
