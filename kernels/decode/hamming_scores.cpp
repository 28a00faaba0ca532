#include "kernels/decode/hamming_scores.h"

#include <bit>
#include <cstring>
#include <limits>

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

// Distances of keys whose codes have kPairs pairs of words; the compiler uses vector popcounts.
//   q      [num_codes, words]
//   shift  code c counts 2^(c shift) times
template <int kPairs>
void distances_of(const int32_t* q, int64_t num_codes, int64_t shift, const int32_t* codes,
                  int64_t count, uint16_t* out) {
  for (int64_t c = 0; c < num_codes; ++c) {
    uint64_t query[kPairs];
    for (int w = 0; w < kPairs; ++w) query[w] = word_pair(q + 2 * (c * kPairs + w));
    for (int64_t p = 0; p < count; ++p) {
      int bits = 0;
      for (int w = 0; w < kPairs; ++w) {
        bits += std::popcount(query[w] ^ word_pair(codes + 2 * (p * kPairs + w)));
      }
      out[p] = static_cast<uint16_t>((c == 0 ? 0 : out[p]) + (bits << c * shift));
    }
  }
}

// Distances of keys whose codes have any number of 32-bit words.
void distances_of_words(const int32_t* q, int64_t num_codes, int64_t shift, int64_t words,
                        const int32_t* codes, int64_t count, uint16_t* out) {
  for (int64_t p = 0; p < count; ++p) {
    int distance = 0;
    for (int64_t c = 0; c < num_codes; ++c) {
      int bits = 0;
      for (int64_t w = 0; w < words; ++w) {
        bits += std::popcount(static_cast<uint32_t>(q[c * words + w] ^ codes[p * words + w]));
      }
      distance += bits << c * shift;
    }
    out[p] = static_cast<uint16_t>(distance);
  }
}

void score_piece(const int32_t* q, int64_t num_codes, int64_t shift, int64_t words,
                 const int32_t* codes, int64_t count, uint16_t* out) {
  if (words == 2) return distances_of<1>(q, num_codes, shift, codes, count, out);
  if (words == 4) return distances_of<2>(q, num_codes, shift, codes, count, out);
  if (words == 8) return distances_of<4>(q, num_codes, shift, codes, count, out);
  distances_of_words(q, num_codes, shift, words, codes, count, out);
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
  require_shape(codes, {batch, kv_heads, codes.dim(2), words}, "codes");
  require_dtype(codes, DType::i32, "codes");
  require_shape(lengths, {batch}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(distances, {batch, kv_heads, codes.dim(2)}, "distances");
  require_dtype(distances, DType::u16, "distances");
  const int64_t weight = weight_of_query_codes(kind, group);
  require(weight * words * 32 <= std::numeric_limits<uint16_t>::max(),
          "distances to codes of {} bits with the weight {} do not fit u16", words * 32, weight);
  SWITCHYARD_BODY(stream, hamming_scores)(stream, q_codes, kind, codes, lengths, distances);
}

void key_norm_scores(Stream& stream, ConstTensorView distances, ConstTensorView norms,
                     ConstTensorView lengths, int64_t weight, int64_t bits, TensorView scores) {
  require(distances.rank() == 3, "distances has shape {}, expected three dimensions",
          distances.shape());
  require_dtype(distances, DType::u16, "distances");
  require_shape(norms, distances.shape(), "norms");
  require_dtype(norms, DType::f32, "norms");
  require_shape(lengths, {distances.dim(0)}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(scores, distances.shape(), "scores");
  require_dtype(scores, DType::f32, "scores");
  require(weight >= 1 && bits >= 1, "weight is {} and bits {}, expected at least 1", weight, bits);
  SWITCHYARD_BODY(stream, key_norm_scores)(stream, distances, norms, lengths, weight, bits, scores);
}

namespace cpu {

void hamming_scores(Stream&, ConstTensorView q_codes, QueryCodes kind, ConstTensorView codes,
                    ConstTensorView lengths, TensorView distances) {
  const int64_t kv_heads = codes.dim(1), max_len = codes.dim(2), words = codes.dim(3);
  const int64_t num_codes = q_codes.dim(1) / kv_heads, shift = kind == QueryCodes::planes ? 1 : 0;
  require_lengths(lengths, max_len);
  for_each_piece(lengths, kv_heads, max_len, [&](int64_t row, int64_t begin, int64_t count) {
    score_piece(q_codes.data<int32_t>() + row * num_codes * words, num_codes, shift, words,
                codes.data<int32_t>() + (row * max_len + begin) * words, count,
                distances.data<uint16_t>() + row * max_len + begin);
  });
}

void key_norm_scores(Stream&, ConstTensorView distances, ConstTensorView norms,
                     ConstTensorView lengths, int64_t weight, int64_t bits, TensorView scores) {
  const int64_t kv_heads = distances.dim(1), max_len = distances.dim(2);
  require_lengths(lengths, max_len);
  const float factor = 2.0f / static_cast<float>(bits), most = static_cast<float>(weight);
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
