#include "kernels/decode/page_bounds.h"

#include <algorithm>

#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

// Updates one page's bounds with its keys [begin, end).
//   k             [end - begin, head_dim]
//   lower, upper  [head_dim]
template <class T>
void widen(const T* k, int64_t begin, int64_t end, int64_t page_size, int64_t head_dim, T* lower,
           T* upper) {
  for (int64_t position = begin; position < end; ++position, k += head_dim) {
    if (position % page_size == 0) {
      std::copy_n(k, head_dim, lower);
      std::copy_n(k, head_dim, upper);
      continue;
    }
    for (int64_t i = 0; i < head_dim; ++i) {
      const auto value = static_cast<float>(k[i]);
      if (value < static_cast<float>(lower[i])) lower[i] = k[i];
      if (value > static_cast<float>(upper[i])) upper[i] = k[i];
    }
  }
}

template <class T>
void update(ConstTensorView k, int64_t first_position, int64_t page_size, TensorView lower,
            TensorView upper) {
  const int64_t seq_len = k.dim(2), head_dim = k.dim(3), pages = lower.dim(2);
  const int64_t last_position = first_position + seq_len;
#pragma omp parallel for
  for (int64_t head = 0; head < k.dim(0) * k.dim(1); ++head) {
    for (int64_t begin = first_position; begin < last_position;) {
      const int64_t page = begin / page_size;
      const int64_t end = std::min((page + 1) * page_size, last_position);
      const int64_t bounds = (head * pages + page) * head_dim;
      widen(k.data<T>() + (head * seq_len + begin - first_position) * head_dim, begin, end,
            page_size, head_dim, lower.data<T>() + bounds, upper.data<T>() + bounds);
      begin = end;
    }
  }
}

//   q             [group, head_dim]
//   lower, upper  [head_dim] of one page
template <class T>
float bound(const T* q, int64_t group, const T* lower, const T* upper, int64_t head_dim) {
  float total = 0.0f;
  for (int64_t g = 0; g < group; ++g) {
    for (int64_t i = 0; i < head_dim; ++i) {
      const auto x = static_cast<float>(q[g * head_dim + i]);
      total += std::max(x * static_cast<float>(lower[i]), x * static_cast<float>(upper[i]));
    }
  }
  return total;
}

template <class T>
void score(ConstTensorView q, ConstTensorView lower, ConstTensorView upper, ConstTensorView lengths,
           int64_t page_size, TensorView scores) {
  const int64_t kv_heads = lower.dim(1), pages = lower.dim(2), head_dim = lower.dim(3);
  const int64_t group = q.dim(1) / kv_heads, max_len = scores.dim(2);
#pragma omp parallel for schedule(dynamic)
  for (int64_t row = 0; row < q.dim(0) * kv_heads; ++row) {
    const int64_t length = lengths.data<int32_t>()[row / kv_heads];
    float* out = scores.data<float>() + row * max_len;
    for (int64_t begin = 0; begin < length; begin += page_size) {
      const int64_t bounds = (row * pages + begin / page_size) * head_dim;
      std::fill(out + begin, out + std::min(begin + page_size, length),
                bound(q.data<T>() + row * group * head_dim, group, lower.data<T>() + bounds,
                      upper.data<T>() + bounds, head_dim));
    }
  }
}

void require_bounds(ConstTensorView lower, ConstTensorView upper, const Shape& shape, DType dtype,
                    int64_t page_size) {
  require(page_size >= 1, "a page has {} keys, expected at least 1", page_size);
  require_shape(lower, shape, "lower");
  require_dtype(lower, dtype, "lower");
  require_shape(upper, shape, "upper");
  require_dtype(upper, dtype, "upper");
}

}  // namespace

void update_page_bounds(Stream& stream, ConstTensorView k, const FirstPosition& first_position,
                        int64_t page_size, TensorView lower, TensorView upper) {
  require(k.rank() == 4 && lower.rank() == 4,
          "k has shape {} and lower {}, expected four dimensions each", k.shape(), lower.shape());
  require_bounds(lower, upper, {k.dim(0), k.dim(1), lower.dim(2), k.dim(3)}, k.dtype(), page_size);
  require(
      first_position.on_host >= 0 && first_position.on_host + k.dim(2) <= lower.dim(2) * page_size,
      "{} pages of {} keys hold no position {}", lower.dim(2), page_size,
      first_position.on_host + k.dim(2) - 1);
  SWITCHYARD_BODY(stream, update_page_bounds)(stream, k, first_position, page_size, lower, upper);
}

void page_scores(Stream& stream, ConstTensorView q, ConstTensorView lower, ConstTensorView upper,
                 ConstTensorView lengths, int64_t page_size, TensorView scores) {
  require(q.rank() == 3 && lower.rank() == 4 && scores.rank() == 3,
          "q has shape {}, lower {} and scores {}, expected three, four and three dimensions",
          q.shape(), lower.shape(), scores.shape());
  const int64_t batch = q.dim(0), heads = q.dim(1), kv_heads = lower.dim(1);
  require(kv_heads > 0 && heads % kv_heads == 0, "{} query heads cannot share {} key/value heads",
          heads, kv_heads);
  require_bounds(lower, upper, {batch, kv_heads, lower.dim(2), q.dim(2)}, q.dtype(), page_size);
  require_shape(lengths, {batch}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(scores, {batch, kv_heads, scores.dim(2)}, "scores");
  require_dtype(scores, DType::f32, "scores");
  require(scores.dim(2) <= lower.dim(2) * page_size, "{} pages of {} keys are fewer than {} scores",
          lower.dim(2), page_size, scores.dim(2));
  SWITCHYARD_BODY(stream, page_scores)(stream, q, lower, upper, lengths, page_size, scores);
}

namespace cpu {

void update_page_bounds(Stream&, ConstTensorView k, const FirstPosition& first_position,
                        int64_t page_size, TensorView lower, TensorView upper) {
  dispatch_compute_dtype(
      k.dtype(), [&]<class T>() { update<T>(k, first_position.on_host, page_size, lower, upper); });
}

void page_scores(Stream&, ConstTensorView q, ConstTensorView lower, ConstTensorView upper,
                 ConstTensorView lengths, int64_t page_size, TensorView scores) {
  for (int64_t b = 0; b < lengths.dim(0); ++b) {
    const int32_t length = lengths.data<int32_t>()[b];
    require(length >= 1 && length <= scores.dim(2),
            "lengths[{}] is {}, expected 1 to {} cached positions", b, length, scores.dim(2));
  }
  dispatch_compute_dtype(q.dtype(),
                         [&]<class T>() { score<T>(q, lower, upper, lengths, page_size, scores); });
}

}  // namespace cpu

}  // namespace switchyard
