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
// Their projections to the 32 columns of a word.
struct WordSums {
  float of_row[kRows][kWordBits];
};

// The columns of one key/value head's projection.
struct Columns {
  const float* weight;      // [head_dim, number]
  const float* thresholds;  // [number], or null: 0
  int64_t head_dim, number;

  int64_t words() const { return number / kWordBits; }
};

Columns columns_of(ConstTensorView weight, ConstTensorView thresholds, int64_t kv_head) {
  const int64_t head_dim = weight.dim(1), number = weight.dim(2);
  return {weight.data<float>() + kv_head * head_dim * number,
          thresholds ? thresholds.data<float>() + kv_head * number : nullptr, head_dim, number};
}

// sums.of_row[r][j] = <row r of x, column 32 word + j> - its threshold
//   x  [rows, head_dim], rows <= kRows
template <class T>
void project(const T* x, int64_t rows, const Columns& c, int64_t word, WordSums& sums) {
  const int64_t first = word * kWordBits;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < kWordBits; ++j) {
      sums.of_row[r][j] = c.thresholds ? -c.thresholds[first + j] : 0.0f;
    }
  }
  for (int64_t i = 0; i < c.head_dim; ++i) {
    const float* columns = c.weight + i * c.number + first;
    for (int64_t r = 0; r < rows; ++r) {
      const auto value = static_cast<float>(x[r * c.head_dim + i]);
#pragma omp simd
      for (int64_t j = 0; j < kWordBits; ++j) sums.of_row[r][j] += value * columns[j];
    }
  }
}

int32_t pack(const float (&sums)[kWordBits]) {
  uint32_t word = 0;
  for (int64_t j = 0; j < kWordBits; ++j) word |= static_cast<uint32_t>(sums[j] > 0.0f) << j;
  return static_cast<int32_t>(word);
}

// Turns rows of x into rows of signs.
template <class T>
void encode_sign_rows(const T* x, int64_t rows, const Columns& c, int32_t* codes) {
  WordSums sums;
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = std::min(kRows, rows - first);
    for (int64_t word = 0; word < c.words(); ++word) {
      project(x + first * c.head_dim, count, c, word, sums);
      for (int64_t r = 0; r < count; ++r) {
        codes[(first + r) * c.words() + word] = pack(sums.of_row[r]);
      }
    }
  }
}

// Writes the bits of `levels` to the same word of all planes, `stride` words apart.
void pack_planes(const int32_t (&levels)[kWordBits], int64_t planes, int64_t stride,
                 int32_t* word) {
  for (int64_t p = 0; p < planes; ++p) {
    uint32_t bits = 0;
    for (int64_t j = 0; j < kWordBits; ++j) {
      bits |= (static_cast<uint32_t>(levels[j]) >> p & 1u) << j;
    }
    word[p * stride] = static_cast<int32_t>(bits);
  }
}

// Rounds 32 values to levels from 0 on, of which `half` stand for negative values.
void round_word(const float* x, float per_step, int32_t half, int32_t (&levels)[kWordBits]) {
  const auto highest = static_cast<float>(2 * half - 1);
#pragma omp simd
  for (int64_t j = 0; j < kWordBits; ++j) {
    const float level = std::floor(x[j] * per_step) + static_cast<float>(half);
    // Not std::fmin and std::fmax, which are calls; NaN becomes 0.
    const float from_zero = level > 0.0f ? level : 0.0f;
    levels[j] = static_cast<int32_t>(from_zero < highest ? from_zero : highest);
  }
}

float sum_of_squares(const float (&values)[kWordBits]) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < kWordBits; ++j) sum += values[j] * values[j];
  return sum;
}

// sum over j of x_j v_j
float product_with_levels(const float (&x)[kWordBits], const int32_t (&levels)[kWordBits],
                          int32_t half) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < kWordBits; ++j) {
    sum += x[j] * static_cast<float>(2 * (levels[j] - half) + 1);
  }
  return sum;
}

// Turns the projection of one key into its code, and returns its length (HashProjection).
//   x  the sums of all words; the key's are those of `row`
float encode_key(const std::vector<WordSums>& x, int64_t row, int64_t planes, int32_t* code) {
  const auto words = std::ssize(x);
  float squares = 0.0f, product = 0.0f;
  for (const WordSums& word : x) squares += sum_of_squares(word.of_row[row]);
  const auto half = static_cast<int32_t>(1 << (planes - 1));
  const float steps = std::sqrt(static_cast<float>(words * kWordBits)) / key_step(planes);
  // The levels of one plane are signs, whatever the step.
  const float per_step = planes == 1 ? 1.0f : squares > 0.0f ? steps / std::sqrt(squares) : 0.0f;
  for (int64_t w = 0; w < words; ++w) {
    const auto& values = x[static_cast<size_t>(w)].of_row[row];
    int32_t levels[kWordBits];
    round_word(values, per_step, half, levels);
    product += product_with_levels(values, levels, half);
    pack_planes(levels, planes, words, code + w);
  }
  return product > 0.0f ? squares / product : 0.0f;
}

// Turns rows of x into codes of bit planes.
//   sums     scratch
//   lengths  [rows]; null: not written
template <class T>
void encode_plane_rows(const T* x, int64_t rows, const Columns& c, int64_t planes,
                       std::vector<WordSums>& sums, int32_t* codes, float* lengths) {
  sums.resize(static_cast<size_t>(c.words()));
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = std::min(kRows, rows - first);
    for (int64_t word = 0; word < c.words(); ++word) {
      WordSums of_word;  // on the stack, where no operand can overlap it, it stays in registers
      project(x + first * c.head_dim, count, c, word, of_word);
      sums[static_cast<size_t>(word)] = of_word;
    }
    for (int64_t r = 0; r < count; ++r) {
      const float length = encode_key(sums, r, planes, codes + (first + r) * planes * c.words());
      if (lengths) lengths[first + r] = length;
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
void encode_keys(ConstTensorView k, const HashProjection& hash, int64_t first_position,
                 TensorView codes, TensorView norms) {
  const int64_t kv_heads = k.dim(1), seq_len = k.dim(2), head_dim = k.dim(3);
  const int64_t words = codes.dim(3), max_len = codes.dim(2);
  const int64_t pieces = ceil_div(seq_len, kPieceRows);
#pragma omp parallel
  {
    std::vector<WordSums> sums;
#pragma omp for
    for (int64_t i = 0; i < k.dim(0) * kv_heads * pieces; ++i) {
      const int64_t head = i / pieces, first = i % pieces * kPieceRows;
      const int64_t rows = std::min(kPieceRows, seq_len - first);
      const T* x = k.data<T>() + (head * seq_len + first) * head_dim;
      const int64_t position = head * max_len + first_position + first;
      const Columns columns = columns_of(hash.keys, hash.thresholds, head % kv_heads);
      int32_t* const out = codes.data<int32_t>() + position * words;
      float* const lengths = norms ? norms.data<float>() + position : nullptr;
      if (hash.query_codes() == QueryCodes::planes) {
        encode_plane_rows(x, rows, columns, hash.key_planes, sums, out, lengths);
        continue;
      }
      encode_sign_rows(x, rows, columns, out);
      for (int64_t r = 0; lengths && r < rows; ++r) {
        lengths[r] = length_of(x + r * head_dim, head_dim);
      }
    }
  }
}

template <class T>
void encode_signs(ConstTensorView q, const HashProjection& hash, TensorView q_codes) {
  const int64_t heads = q.dim(1), rows = q.dim(2), group = heads / hash.keys.dim(0);
#pragma omp parallel for
  for (int64_t head = 0; head < q.dim(0) * heads; ++head) {
    encode_sign_rows(q.data<T>() + head * rows * q.dim(3), rows,
                     columns_of(hash.keys, hash.thresholds, head % heads / group),
                     q_codes.data<int32_t>() + head * rows * q_codes.dim(3));
  }
}

// The planes of one query.
//   x       [head_dim] the sum over its group
//   y       [columns] scratch
//   planes  [kQueryPlanes] codes, `stride` words apart
void encode_planes_of(const float* x, const Columns& c, float* y, int64_t stride, int32_t* planes) {
  constexpr int32_t kHalf = 1 << (kQueryPlanes - 1);
  float most = 0.0f;
  for (int64_t word = 0; word < c.words(); ++word) {
    WordSums sums;
    project(x, 1, c, word, sums);
    std::copy_n(sums.of_row[0], kWordBits, y + word * kWordBits);
    for (const float sum : sums.of_row[0]) most = std::max(most, std::abs(sum));
  }
  const float per_step = most > 0.0f ? kHalf / most : 0.0f;
  for (int64_t word = 0; word < c.words(); ++word) {
    int32_t levels[kWordBits];
    round_word(y + word * kWordBits, per_step, kHalf, levels);
    pack_planes(levels, kQueryPlanes, stride, planes + word);
  }
}

template <class T>
void encode_planes(ConstTensorView q, const HashProjection& hash, TensorView q_codes) {
  const int64_t kv_heads = hash.keys.dim(0), group = q.dim(1) / kv_heads;
  const int64_t rows = q.dim(2), head_dim = q.dim(3), words = q_codes.dim(3);
#pragma omp parallel
  {
    std::vector<float> sum(static_cast<size_t>(head_dim));
    std::vector<float> y(static_cast<size_t>(words * kWordBits));
#pragma omp for
    for (int64_t i = 0; i < q.dim(0) * kv_heads * rows; ++i) {
      const int64_t head = i / rows, row = i % rows;
      std::ranges::fill(sum, 0.0f);
      for (int64_t g = 0; g < group; ++g) {
        const T* x = q.data<T>() + ((head * group + g) * rows + row) * head_dim;
        for (int64_t d = 0; d < head_dim; ++d)
          sum[static_cast<size_t>(d)] += static_cast<float>(x[d]);
      }
      encode_planes_of(sum.data(), columns_of(hash.queries, {}, head % kv_heads), y.data(),
                       rows * words,
                       q_codes.data<int32_t>() + (head * kQueryPlanes * rows + row) * words);
    }
  }
}

void require_projection(const HashProjection& hash) {
  const ConstTensorView& weight = hash.keys;
  require(weight.rank() == 3, "the projection has shape {}, expected three dimensions",
          weight.shape());
  require_dtype(weight, DType::f32, "the projection");
  require(weight.dim(2) > 0 && weight.dim(2) % kWordBits == 0,
          "a code has {} columns, expected a multiple of {}", weight.dim(2), kWordBits);
  require(static_cast<bool>(hash.queries) == static_cast<bool>(hash.thresholds),
          "a projection of queries and thresholds of keys belong together");
  const int64_t most = hash.queries ? kMostKeyPlanes : 1;
  require(hash.key_planes >= 1 && hash.key_planes <= most,
          "keys have {} bits of each column, expected 1 to {}", hash.key_planes, most);
  if (!hash.queries) return;
  require_shape(hash.queries, weight.shape(), "the projection of queries");
  require_dtype(hash.queries, DType::f32, "the projection of queries");
  require_shape(hash.thresholds, {weight.dim(0), weight.dim(2)}, "thresholds");
  require_dtype(hash.thresholds, DType::f32, "thresholds");
}

void require_keys(ConstTensorView k, const HashProjection& hash, int64_t first_position,
                  ConstTensorView codes, ConstTensorView norms) {
  require(k.rank() == 4 && codes.rank() == 4,
          "k has shape {} and codes {}, expected four dimensions each", k.shape(), codes.shape());
  require_shape(hash.keys, {k.dim(1), k.dim(3), hash.columns()}, "weight");
  require_shape(codes, {k.dim(0), k.dim(1), codes.dim(2), hash.bits() / kWordBits}, "codes");
  require_dtype(codes, DType::i32, "codes");
  require(first_position >= 0 && first_position + k.dim(2) <= codes.dim(2),
          "the code cache holds {} positions, {} are needed", codes.dim(2),
          first_position + k.dim(2));
  if (!norms) return;
  require_shape(norms, {k.dim(0), k.dim(1), codes.dim(2)}, "norms");
  require_dtype(norms, DType::f32, "norms");
}

void require_queries(ConstTensorView q, const HashProjection& hash, ConstTensorView q_codes) {
  const ConstTensorView& weight = hash.keys;
  require(q.rank() == 4, "q has shape {}, expected four dimensions", q.shape());
  require(weight.dim(0) > 0 && q.dim(1) % weight.dim(0) == 0,
          "{} query heads cannot share the projections of {} key/value heads", q.dim(1),
          weight.dim(0));
  require_shape(weight, {weight.dim(0), q.dim(3), weight.dim(2)}, "weight");
  const int64_t codes = num_query_codes(hash.query_codes(), q.dim(1) / weight.dim(0));
  require_shape(q_codes, {q.dim(0), weight.dim(0) * codes, q.dim(2), weight.dim(2) / kWordBits},
                "q_codes");
  require_dtype(q_codes, DType::i32, "q_codes");
}

}  // namespace

int64_t num_key_planes(int64_t bits, int64_t head_dim) {
  const auto suits = [bits](int64_t planes) {
    return bits % (planes * kWordBits) == 0 &&
           bits / planes <= most_columns(QueryCodes::planes, 1, planes);
  };
  int64_t planes = std::clamp<int64_t>(bits / head_dim, 1, kMostKeyPlanes);
  while (planes > 1 && !suits(planes)) --planes;
  return planes;
}

void hash_encode(Stream& stream, ConstTensorView q, ConstTensorView k, const HashProjection& hash,
                 const FirstPosition& first_position, TensorView q_codes, TensorView codes,
                 TensorView norms) {
  require(q || k, "there is neither a query nor a key to encode");
  require_projection(hash);
  if (k) require_keys(k, hash, first_position.on_host, codes, norms);
  if (q) require_queries(q, hash, q_codes);
  if (q && k) require_dtype(k, q.dtype(), "k");
  SWITCHYARD_BODY(stream, hash_encode)
  (stream, q, k, hash, first_position, q_codes, codes, norms);
}

void cpu::hash_encode(Stream&, ConstTensorView q, ConstTensorView k, const HashProjection& hash,
                      const FirstPosition& first_position, TensorView q_codes, TensorView codes,
                      TensorView norms) {
  dispatch_compute_dtype(q ? q.dtype() : k.dtype(), [&]<class T>() {
    if (k) encode_keys<T>(k, hash, first_position.on_host, codes, norms);
    if (!q) return;
    if (hash.query_codes() == QueryCodes::planes) {
      encode_planes<T>(q, hash, q_codes);
    } else {
      encode_signs<T>(q, hash, q_codes);
    }
  });
}

}  // namespace switchyard
