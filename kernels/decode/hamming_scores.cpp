#include "kernels/decode/hamming_scores.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

// Positions of one head that a thread scores at a time.
constexpr int64_t kPiece = 4096;

// Reads two words of a code as one.
uint64_t word_pair(const int32_t* words) {
  uint64_t pair;
  std::memcpy(&pair, words, sizeof(pair));
  return pair;
}

// The codes of the queries of one key/value head.
struct QueryCode {
  const int32_t* codes;  // [number, words]
  int64_t number, words;
  int64_t shift;  // code c counts 2^(c shift) times
};

// Distances of keys whose planes have kPairs pairs of words; the compiler uses vector popcounts.
template <int kPairs, int kPlanes>
void distances_of(const QueryCode& q, const int32_t* codes, int64_t count, uint16_t* out) {
  for (int64_t c = 0; c < q.number; ++c) {
    uint64_t query[kPairs];
    for (int w = 0; w < kPairs; ++w) query[w] = word_pair(q.codes + 2 * (c * kPairs + w));
    for (int64_t k = 0; k < count; ++k) {
      int bits = 0;
      for (int p = 0; p < kPlanes; ++p) {
        for (int w = 0; w < kPairs; ++w) {
          const int32_t* const words = codes + 2 * ((k * kPlanes + p) * kPairs + w);
          bits += std::popcount(query[w] ^ word_pair(words)) << p;
        }
      }
      out[k] = static_cast<uint16_t>((c == 0 ? 0 : out[k]) + (bits << c * q.shift));
    }
  }
}

// Distances of keys whose planes have any number of 32-bit words.
void distances_of_words(const QueryCode& q, int64_t planes, const int32_t* codes, int64_t count,
                        uint16_t* out) {
  for (int64_t k = 0; k < count; ++k) {
    int distance = 0;
    for (int64_t c = 0; c < q.number; ++c) {
      for (int64_t p = 0; p < planes; ++p) {
        const int32_t* const query = q.codes + c * q.words;
        const int32_t* const key = codes + (k * planes + p) * q.words;
        int bits = 0;
        for (int64_t w = 0; w < q.words; ++w) {
          bits += std::popcount(static_cast<uint32_t>(query[w] ^ key[w]));
        }
        distance += bits << (c * q.shift + p);
      }
    }
    out[k] = static_cast<uint16_t>(distance);
  }
}

void score_piece(const QueryCode& q, int64_t planes, const int32_t* codes, int64_t count,
                 uint16_t* out) {
  const auto has = [&](int64_t words, int64_t of_key) {
    return q.words == words && planes == of_key;
  };
  if (has(2, 1)) return distances_of<1, 1>(q, codes, count, out);
  if (has(2, 2)) return distances_of<1, 2>(q, codes, count, out);
  if (has(2, 4)) return distances_of<1, 4>(q, codes, count, out);
  if (has(4, 1)) return distances_of<2, 1>(q, codes, count, out);
  if (has(4, 2)) return distances_of<2, 2>(q, codes, count, out);
  if (has(8, 1)) return distances_of<4, 1>(q, codes, count, out);
  distances_of_words(q, planes, codes, count, out);
}

void require_lengths(ConstTensorView lengths, int64_t max_len) {
  for (int64_t b = 0; b < lengths.dim(0); ++b) {
    const int32_t length = lengths.data<int32_t>()[b];
    require(length >= 1 && length <= max_len,
            "lengths[{}] is {}, expected 1 to {} cached positions", b, length, max_len);
  }
}

// Calls body(row, begin, count) for pieces of every (sequence, kv head).
template <class Body>
void for_each_piece(ConstTensorView lengths, int64_t kv_heads, int64_t max_len, const Body& body) {
  const int64_t pieces = ceil_div(max_len, kPiece);
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < lengths.dim(0) * kv_heads * pieces; ++i) {
    const int64_t row = i / pieces, begin = i % pieces * kPiece;
    const int64_t length = lengths.data<int32_t>()[row / kv_heads];
    if (begin < length) body(row, begin, std::min(kPiece, length - begin));
  }
}

}  // namespace

void hamming_scores(Stream& stream, ConstTensorView q_codes, QueryCodes kind, ConstTensorView codes,
                    ConstTensorView lengths, TensorView distances) {
  require(q_codes.rank() == 3 && codes.rank() == 4,
          "q_codes has shape {} and codes {}, expected three and four dimensions", q_codes.shape(),
          codes.shape());
  const int64_t batch = q_codes.dim(0), num_codes = q_codes.dim(1), words = q_codes.dim(2);
  const int64_t kv_heads = codes.dim(1);
  require(kv_heads > 0 && num_codes % kv_heads == 0,
          "{} codes of queries cannot share {} key/value heads", num_codes, kv_heads);
  const int64_t group = num_codes / kv_heads;
  require(group == num_query_codes(kind, group), "{} codes of queries are not {} planes", group,
          kQueryPlanes);
  require_dtype(q_codes, DType::i32, "q_codes");
  const int64_t planes = words > 0 ? codes.dim(3) / words : 0;
  require(planes == 1 || (kind == QueryCodes::planes && planes > 1 && planes <= kMostKeyPlanes),
          "codes of keys have {} words, {} times as many as those of queries", codes.dim(3),
          planes);
  require_shape(codes, {batch, kv_heads, codes.dim(2), planes * words}, "codes");
  require_dtype(codes, DType::i32, "codes");
  require_shape(lengths, {batch}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(distances, {batch, kv_heads, codes.dim(2)}, "distances");
  require_dtype(distances, DType::u16, "distances");
  const int64_t most = most_columns(kind, group, planes);
  require(
      words * 32 <= most,
      "distances to codes of {} columns do not fit u16, of at most {} they do: choose fewer bits",
      words * 32, most);
  SWITCHYARD_BODY(stream, hamming_scores)(stream, q_codes, kind, codes, lengths, distances);
}

void key_norm_scores(Stream& stream, ConstTensorView distances, ConstTensorView norms,
                     ConstTensorView lengths, int64_t weight, int64_t columns, TensorView scores) {
  require(distances.rank() == 3, "distances has shape {}, expected three dimensions",
          distances.shape());
  require_dtype(distances, DType::u16, "distances");
  require_shape(norms, distances.shape(), "norms");
  require_dtype(norms, DType::f32, "norms");
  require_shape(lengths, {distances.dim(0)}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(scores, distances.shape(), "scores");
  require_dtype(scores, DType::f32, "scores");
  require(weight >= 1 && columns >= 1, "weight is {} and columns {}, expected at least 1", weight,
          columns);
  SWITCHYARD_BODY(stream, key_norm_scores)
  (stream, distances, norms, lengths, weight, columns, scores);
}

namespace cpu {

void hamming_scores(Stream&, ConstTensorView q_codes, QueryCodes kind, ConstTensorView codes,
                    ConstTensorView lengths, TensorView distances) {
  const int64_t kv_heads = codes.dim(1), max_len = codes.dim(2), words = q_codes.dim(2);
  const int64_t num_codes = q_codes.dim(1) / kv_heads, planes = codes.dim(3) / words;
  require_lengths(lengths, max_len);
  for_each_piece(lengths, kv_heads, max_len, [&](int64_t row, int64_t begin, int64_t count) {
    const QueryCode queries{.codes = q_codes.data<int32_t>() + row * num_codes * words,
                            .number = num_codes,
                            .words = words,
                            .shift = kind == QueryCodes::planes ? 1 : 0};
    score_piece(queries, planes, codes.data<int32_t>() + (row * max_len + begin) * planes * words,
                count, distances.data<uint16_t>() + row * max_len + begin);
  });
}

void key_norm_scores(Stream&, ConstTensorView distances, ConstTensorView norms,
                     ConstTensorView lengths, int64_t weight, int64_t columns, TensorView scores) {
  const int64_t kv_heads = distances.dim(1), max_len = distances.dim(2);
  require_lengths(lengths, max_len);
  const float factor = 2.0f / static_cast<float>(columns), most = static_cast<float>(weight);
  for_each_piece(lengths, kv_heads, max_len, [&](int64_t row, int64_t begin, int64_t count) {
    const uint16_t* distance = distances.data<uint16_t>() + row * max_len + begin;
    const float* norm = norms.data<float>() + row * max_len + begin;
    float* score = scores.data<float>() + row * max_len + begin;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      score[i] = (most - factor * static_cast<float>(distance[i])) * norm[i];
    }
  });
}

}  // namespace cpu

}  // namespace switchyard
