#include "kernels/decode/hash_encode.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

constexpr int64_t kWordBits = 32;
// Rows that are projected together; a row of the weight is read once for all of these.
constexpr int64_t kRows = 4;

// sums[r, j] = <row r of x, column j of the weight> for the 32 columns of a word
//   x       [rows, head_dim], rows <= kRows
//   weight  [head_dim, bits], from the word's first column on
template <class T>
void project(const T* x, int64_t rows, int64_t head_dim, const float* weight, int64_t bits,
             float (&sums)[kRows][kWordBits]) {
  for (int64_t r = 0; r < rows; ++r) std::fill_n(sums[r], kWordBits, 0.0f);
  for (int64_t i = 0; i < head_dim; ++i) {
    const float* columns = weight + i * bits;
    for (int64_t r = 0; r < rows; ++r) {
      const auto value = static_cast<float>(x[r * head_dim + i]);
#pragma omp simd
      for (int64_t j = 0; j < kWordBits; ++j) sums[r][j] += value * columns[j];
    }
  }
}

int32_t pack(const float (&sums)[kWordBits]) {
  uint32_t word = 0;
  for (int64_t j = 0; j < kWordBits; ++j) word |= static_cast<uint32_t>(sums[j] > 0.0f) << j;
  return static_cast<int32_t>(word);
}

// Turns rows of x into rows of codes.
template <class T>
void encode_rows(const T* x, int64_t rows, int64_t head_dim, const float* weight, int64_t bits,
                 int32_t* codes) {
  const int64_t words = bits / kWordBits;
  float sums[kRows][kWordBits];
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = std::min(kRows, rows - first);
    for (int64_t word = 0; word < words; ++word) {
      project(x + first * head_dim, count, head_dim, weight + word * kWordBits, bits, sums);
      for (int64_t r = 0; r < count; ++r) codes[(first + r) * words + word] = pack(sums[r]);
    }
  }
}

template <class T>
float length_of(const T* x, int64_t head_dim) {
  float sum = 0.0f;
  for (int64_t i = 0; i < head_dim; ++i) {
    const auto value = static_cast<float>(x[i]);
    sum += value * value;
  }
  return std::sqrt(sum);
}

// Rows of one head, cut into pieces that threads share.
constexpr int64_t kPieceRows = 64;

template <class T>
void encode_keys(ConstTensorView k, ConstTensorView weight, int64_t first_position,
                 TensorView codes, TensorView norms) {
  const int64_t kv_heads = k.dim(1), seq_len = k.dim(2), head_dim = k.dim(3);
  const int64_t bits = weight.dim(2), words = bits / kWordBits, max_len = codes.dim(2);
  const int64_t pieces = ceil_div(seq_len, kPieceRows);
#pragma omp parallel for
  for (int64_t i = 0; i < k.dim(0) * kv_heads * pieces; ++i) {
    const int64_t head = i / pieces, first = i % pieces * kPieceRows;
    const int64_t rows = std::min(kPieceRows, seq_len - first);
    const T* x = k.data<T>() + (head * seq_len + first) * head_dim;
    const int64_t position = head * max_len + first_position + first;
    encode_rows(x, rows, head_dim, weight.data<float>() + head % kv_heads * head_dim * bits, bits,
                codes.data<int32_t>() + position * words);
    if (!norms) continue;
    for (int64_t r = 0; r < rows; ++r) {
      norms.data<float>()[position + r] = length_of(x + r * head_dim, head_dim);
    }
  }
}

template <class T>
void encode_queries(ConstTensorView q, ConstTensorView weight, TensorView q_codes) {
  const int64_t heads = q.dim(1), rows = q.dim(2), head_dim = q.dim(3), bits = weight.dim(2);
  const int64_t group = heads / weight.dim(0), words = bits / kWordBits;
#pragma omp parallel for
  for (int64_t head = 0; head < q.dim(0) * heads; ++head) {
    encode_rows(q.data<T>() + head * rows * head_dim, rows, head_dim,
                weight.data<float>() + head % heads / group * head_dim * bits, bits,
                q_codes.data<int32_t>() + head * rows * words);
  }
}

void require_keys(ConstTensorView k, ConstTensorView weight, int64_t first_position,
                  ConstTensorView codes, ConstTensorView norms) {
  require(k.rank() == 4 && codes.rank() == 4,
          "k has shape {} and codes {}, expected four dimensions each", to_string(k.shape()),
          to_string(codes.shape()));
  require_shape(weight, {k.dim(1), k.dim(3), weight.dim(2)}, "weight");
  require_shape(codes, {k.dim(0), k.dim(1), codes.dim(2), weight.dim(2) / kWordBits}, "codes");
  require_dtype(codes, DType::i32, "codes");
  require(first_position >= 0 && first_position + k.dim(2) <= codes.dim(2),
          "the code cache holds {} positions, {} are needed", codes.dim(2),
          first_position + k.dim(2));
  if (!norms) return;
  require_shape(norms, {k.dim(0), k.dim(1), codes.dim(2)}, "norms");
  require_dtype(norms, DType::f32, "norms");
}

void require_queries(ConstTensorView q, ConstTensorView weight, ConstTensorView q_codes) {
  require(q.rank() == 4, "q has shape {}, expected four dimensions", to_string(q.shape()));
  require(weight.dim(0) > 0 && q.dim(1) % weight.dim(0) == 0,
          "{} query heads cannot share the projections of {} key/value heads", q.dim(1),
          weight.dim(0));
  require_shape(weight, {weight.dim(0), q.dim(3), weight.dim(2)}, "weight");
  require_shape(q_codes, {q.dim(0), q.dim(1), q.dim(2), weight.dim(2) / kWordBits}, "q_codes");
  require_dtype(q_codes, DType::i32, "q_codes");
}

}  // namespace

void hash_encode(Stream& stream, ConstTensorView q, ConstTensorView k, ConstTensorView weight,
                 int64_t first_position, TensorView q_codes, TensorView codes, TensorView norms) {
  require(q || k, "there is neither a query nor a key to encode");
  require(weight.rank() == 3, "weight has shape {}, expected three dimensions",
          to_string(weight.shape()));
  require_dtype(weight, DType::f32, "weight");
  require(weight.dim(2) > 0 && weight.dim(2) % kWordBits == 0,
          "bits is {}, expected a multiple of {}", weight.dim(2), kWordBits);
  if (k) require_keys(k, weight, first_position, codes, norms);
  if (q) require_queries(q, weight, q_codes);
  if (q && k) require_dtype(k, q.dtype(), "k");
  SWITCHYARD_BODY(stream, hash_encode)
  (stream, q, k, weight, first_position, q_codes, codes, norms);
}

void cpu::hash_encode(Stream&, ConstTensorView q, ConstTensorView k, ConstTensorView weight,
                      int64_t first_position, TensorView q_codes, TensorView codes,
                      TensorView norms) {
  dispatch_compute_dtype(q ? q.dtype() : k.dtype(), [&]<class T>() {
    if (k) encode_keys<T>(k, weight, first_position, codes, norms);
    if (q) encode_queries<T>(q, weight, q_codes);
  });
}

}  // namespace switchyard
