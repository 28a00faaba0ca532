#include "kernels/decode/lsh_sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/inline/lsh_probability.h"
#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
// Positions of one head that a thread weights at a time.
constexpr int64_t kPiece = 1024;

// In how many tables the codes share the bucket.
int64_t collisions(const int32_t* x, const int32_t* y, int64_t tables) {
  const int64_t pairs = tables / 2;
  int32_t low = 0, high = 0;
#pragma omp simd reduction(+ : low, high)
  for (int64_t w = 0; w < pairs; ++w) {
    const auto differ = static_cast<uint32_t>(x[w] ^ y[w]);
    low += (differ & 0xffffu) == 0;
    high += differ >> 16 == 0;
  }
  const bool last = tables % 2 == 1 && ((x[pairs] ^ y[pairs]) & 0xffff) == 0;
  return low + high + last;
}

// The probability that one hash bit of q and k - mean agrees: 1 - theta / pi.
template <class T>
double agreement(const T* q, const T* k, const float* mean, int64_t head_dim) {
  double product = 0.0, q_squared = 0.0, k_squared = 0.0;
  for (int64_t i = 0; i < head_dim; ++i) {
    const double x = static_cast<float>(q[i]);
    const double y = static_cast<double>(static_cast<float>(k[i])) - mean[i];
    product += x * y;
    q_squared += x * x;
    k_squared += y * y;
  }
  const double lengths = std::sqrt(q_squared * k_squared);
  const double cosine = lengths > 0.0 ? std::clamp(product / lengths, -1.0, 1.0) : 0.0;
  return 1.0 - std::acos(cosine) / std::numbers::pi;
}

template <class T>
void weight_keys(ConstTensorView q, ConstTensorView q_codes, ConstTensorView k_cache,
                 ConstTensorView mean, ConstTensorView codes, ConstTensorView lengths,
                 const LshTables& t, TensorView log_weights) {
  const int64_t heads = q.dim(1), head_dim = q.dim(2), words = q_codes.dim(2);
  const int64_t kv_heads = k_cache.dim(1), max_len = k_cache.dim(2), group = heads / kv_heads;
  const int64_t pieces = ceil_div(max_len, kPiece);
#pragma omp parallel for schedule(dynamic)
  for (int64_t item = 0; item < q.dim(0) * heads * pieces; ++item) {
    const int64_t head = item / pieces, begin = item % pieces * kPiece, row = head / group;
    const int64_t end = std::min<int64_t>(begin + kPiece, lengths.data<int32_t>()[head / heads]);
    const T* query = q.data<T>() + head * head_dim;
    const int32_t* code = q_codes.data<int32_t>() + head * words;
    float* out = log_weights.data<float>() + head * max_len;
    for (int64_t p = begin; p < end; ++p) {
      if (p < t.begin || p >= t.end) {
        out[p] = 0.0f;
        continue;
      }
      const int64_t key = row * max_len + p;
      out[p] = kNever;
      if (collisions(code, codes.data<int32_t>() + key * words, t.tables) < 2) continue;
      const double bit = agreement(query, k_cache.data<T>() + key * head_dim,
                                   mean.data<float>() + row * head_dim, head_dim);
      out[p] = static_cast<float>(-std::log(lsh_probability(bit, t.bits, t.tables) + 1e-4));
    }
  }
}

}  // namespace

void lsh_log_weights(Stream& stream, ConstTensorView q, ConstTensorView q_codes,
                     ConstTensorView k_cache, ConstTensorView mean, ConstTensorView codes,
                     ConstTensorView lengths, const LshTables& tables, TensorView log_weights) {
  require(q.rank() == 3 && q_codes.rank() == 3 && k_cache.rank() == 4,
          "q has shape {}, q_codes {} and k_cache {}, expected three, three and four dimensions",
          q.shape(), q_codes.shape(), k_cache.shape());
  const int64_t batch = q.dim(0), heads = q.dim(1), kv_heads = k_cache.dim(1);
  const int64_t max_len = k_cache.dim(2);
  require(tables.bits >= 1 && tables.bits <= 16 && tables.tables >= 2,
          "{} tables of {} bits: expected at least 2 tables of 1 to 16 bits", tables.tables,
          tables.bits);
  require(tables.begin >= 0 && tables.end <= max_len, "tables of keys {} to {}, the cache has {}",
          tables.begin, tables.end, max_len);
  require(kv_heads > 0 && heads % kv_heads == 0, "{} query heads cannot share {} key/value heads",
          heads, kv_heads);
  require_shape(q_codes, {batch, heads, ceil_div<int64_t>(tables.tables, 2)}, "q_codes");
  require_dtype(q_codes, DType::i32, "q_codes");
  require_shape(k_cache, {batch, kv_heads, max_len, q.dim(2)}, "k_cache");
  require_dtype(k_cache, q.dtype(), "k_cache");
  require_shape(mean, {batch, kv_heads, q.dim(2)}, "mean");
  require_dtype(mean, DType::f32, "mean");
  require_shape(codes, {batch, kv_heads, max_len, q_codes.dim(2)}, "codes");
  require_dtype(codes, DType::i32, "codes");
  require_shape(lengths, {batch}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(log_weights, {batch, heads, max_len}, "log_weights");
  require_dtype(log_weights, DType::f32, "log_weights");
  SWITCHYARD_BODY(stream, lsh_log_weights)
  (stream, q, q_codes, k_cache, mean, codes, lengths, tables, log_weights);
}

void list_weighted(Stream& stream, ConstTensorView log_weights, ConstTensorView lengths,
                   TensorView indices, TensorView counts, TensorView selected) {
  require(log_weights.rank() == 3 && indices.rank() == 3,
          "log_weights has shape {} and indices {}, expected three dimensions each",
          log_weights.shape(), indices.shape());
  const int64_t batch = log_weights.dim(0), heads = log_weights.dim(1);
  require(indices.dim(1) > 0 && heads % indices.dim(1) == 0,
          "{} query heads cannot share {} key/value heads", heads, indices.dim(1));
  require_dtype(log_weights, DType::f32, "log_weights");
  require_shape(lengths, {batch}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(indices, {batch, indices.dim(1), indices.dim(2)}, "indices");
  require_dtype(indices, DType::i32, "indices");
  require_shape(counts, {batch}, "counts");
  require_dtype(counts, DType::i32, "counts");
  require_shape(selected, {batch, heads, indices.dim(2)}, "selected");
  require_dtype(selected, DType::f32, "selected");
  SWITCHYARD_BODY(stream, list_weighted)(stream, log_weights, lengths, indices, counts, selected);
}

void cpu::lsh_log_weights(Stream&, ConstTensorView q, ConstTensorView q_codes,
                          ConstTensorView k_cache, ConstTensorView mean, ConstTensorView codes,
                          ConstTensorView lengths, const LshTables& tables,
                          TensorView log_weights) {
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    weight_keys<T>(q, q_codes, k_cache, mean, codes, lengths, tables, log_weights);
  });
}

void cpu::list_weighted(Stream&, ConstTensorView log_weights, ConstTensorView lengths,
                        TensorView indices, TensorView counts, TensorView selected) {
  const int64_t kv_heads = indices.dim(1), stride = indices.dim(2), max_len = log_weights.dim(2);
  const int64_t group = log_weights.dim(1) / kv_heads;
  std::fill_n(counts.data<int32_t>(), counts.num_elements(), 0);
  for (int64_t row = 0; row < indices.dim(0) * kv_heads; ++row) {
    const float* weights = log_weights.data<float>() + row * group * max_len;
    float* out = selected.data<float>() + row * group * stride;
    int32_t* list = indices.data<int32_t>() + row * stride;
    int64_t count = 0;
    for (int64_t p = 0; p < lengths.data<int32_t>()[row / kv_heads]; ++p) {
      float best = kNever;
      for (int64_t g = 0; g < group; ++g) best = std::max(best, weights[g * max_len + p]);
      if (best == kNever) continue;
      for (int64_t g = 0; g < group; ++g) out[g * stride + count] = weights[g * max_len + p];
      list[count++] = static_cast<int32_t>(p);
    }
    std::fill(list + count, list + stride, 0);
    for (int64_t g = 0; g < group; ++g) {
      std::fill(out + g * stride + count, out + (g + 1) * stride, kNever);
    }
    int32_t& longest = counts.data<int32_t>()[row / kv_heads];
    longest = std::max(longest, static_cast<int32_t>(count));
  }
}

}  // namespace switchyard
