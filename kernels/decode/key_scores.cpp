#include "kernels/decode/key_scores.h"

#include <vector>

#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

// Sums the queries of a group: the product of a key with the sum is the sum of its products, and
// needs only one pass over the keys.
//   q    [group, width]
//   sum  [width]
template <class T>
void sum_group(const T* q, int64_t group, int64_t width, float* sum) {
  for (int64_t i = 0; i < width; ++i) {
    float total = 0.0f;
    for (int64_t g = 0; g < group; ++g) total += static_cast<float>(q[g * width + i]);
    sum[i] = total;
  }
}

template <class T>
float dot(const float* q, const T* key, int64_t width) {
  // Several separate sums let the compiler use vectors without reordering additions.
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += q[i + lane] * static_cast<float>(key[i + lane]);
    }
  }
  float total = 0.0f;
  for (; i < width; ++i) total += q[i] * static_cast<float>(key[i]);
  for (const float lane : lanes) total += lane;
  return total;
}

template <class T>
void score(ConstTensorView q, ConstTensorView keys, ConstTensorView lengths, TensorView scores) {
  const int64_t kv_heads = keys.dim(1), max_len = keys.dim(2), width = keys.dim(3);
  const int64_t group = q.dim(1) / kv_heads, rows = q.dim(0) * kv_heads;
#pragma omp parallel for schedule(dynamic)
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<float> sum(static_cast<size_t>(width));
    sum_group(q.data<T>() + row * group * width, group, width, sum.data());
    const T* key = keys.data<T>() + row * max_len * width;
    float* out = scores.data<float>() + row * max_len;
    const int64_t length = lengths.data<int32_t>()[row / kv_heads];
    for (int64_t p = 0; p < length; ++p) out[p] = dot(sum.data(), key + p * width, width);
  }
}

}  // namespace

void key_scores(Stream& stream, ConstTensorView q, ConstTensorView keys, ConstTensorView lengths,
                TensorView scores) {
  require(q.rank() == 3 && keys.rank() == 4,
          "q has shape {} and keys {}, expected three and four dimensions", q.shape(),
          keys.shape());
  const int64_t batch = q.dim(0), heads = q.dim(1), kv_heads = keys.dim(1);
  require(kv_heads > 0 && heads % kv_heads == 0, "{} query heads cannot share {} key/value heads",
          heads, kv_heads);
  require_shape(keys, {batch, kv_heads, keys.dim(2), q.dim(2)}, "keys");
  require_dtype(keys, q.dtype(), "keys");
  require_shape(lengths, {batch}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(scores, {batch, kv_heads, keys.dim(2)}, "scores");
  require_dtype(scores, DType::f32, "scores");
  SWITCHYARD_BODY(stream, key_scores)(stream, q, keys, lengths, scores);
}

void cpu::key_scores(Stream&, ConstTensorView q, ConstTensorView keys, ConstTensorView lengths,
                     TensorView scores) {
  for (int64_t b = 0; b < lengths.dim(0); ++b) {
    const int32_t length = lengths.data<int32_t>()[b];
    require(length >= 1 && length <= keys.dim(2),
            "lengths[{}] is {}, expected 1 to {} cached positions", b, length, keys.dim(2));
  }
  dispatch_compute_dtype(q.dtype(), [&]<class T>() { score<T>(q, keys, lengths, scores); });
}

}  // namespace switchyard
