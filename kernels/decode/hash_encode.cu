#include "kernels/decode/hash_encode.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

// Rows of x [heads of all sequences, rows, head_dim] and the place of their codes.
struct Rows {
  int64_t all_heads = 0, heads = 1, rows = 0;  // of all sequences; of one; of a head
  int64_t group = 1;                           // heads that share a projection
  int64_t out_rows = 0, first_out = 0;         // of a head in the codes; index of the first row
  int64_t head_dim = 0, bits = 0;
};

// A warp computes one word of one row: lane j has column j of the word, so that the warp reads rows
// of the weight and packs the signs with a ballot.
template <class T>
__device__ void encode_word(const Rows& r, int64_t i, const T* x, const float* weight,
                            int32_t* codes, float* norms) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t words = r.bits / kWarpSize, word = i % words, row = i / words;
  const int64_t head = row / r.rows, position = row % r.rows;
  const T* vector = x + row * r.head_dim;
  const float* columns =
      weight + head % r.heads / r.group * r.head_dim * r.bits + word * kWarpSize + lane;
  float sum = 0.0f;
  for (int64_t d = 0; d < r.head_dim; ++d) {
    sum += static_cast<float>(vector[d]) * columns[d * r.bits];
  }
  const uint32_t bits = __ballot_sync(kAllLanes, sum > 0.0f);
  const int64_t out = head * r.out_rows + r.first_out + position;
  if (lane == 0) codes[out * words + word] = static_cast<int32_t>(bits);
  if (!norms || word != 0) return;
  float square = 0.0f;
  for (int64_t d = lane; d < r.head_dim; d += kWarpSize) {
    const auto value = static_cast<float>(vector[d]);
    square += value * value;
  }
  square = warp_sum(square);
  if (lane == 0) norms[out] = sqrtf(square);
}

// One launch encodes the keys first, then the queries.
template <class T>
__global__ void hash_encode_kernel(Rows keys, const T* k, int32_t* codes, float* norms,
                                   Rows queries, const T* q, int32_t* q_codes,
                                   const float* weight) {
  const int64_t words = keys.bits / kWarpSize;
  const int64_t key_words = keys.all_heads * keys.rows * words;
  const int64_t query_words = queries.all_heads * queries.rows * words;
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (i < key_words) {
    encode_word(keys, i, k, weight, codes, norms);
  } else if (i < key_words + query_words) {
    encode_word(queries, i - key_words, q, weight, q_codes, static_cast<float*>(nullptr));
  }
}

}  // namespace

void cuda::hash_encode(Stream& stream, ConstTensorView q, ConstTensorView k, ConstTensorView weight,
                       int64_t first_position, TensorView q_codes, TensorView codes,
                       TensorView norms) {
  const int64_t kv_heads = weight.dim(0), head_dim = weight.dim(1), bits = weight.dim(2);
  Rows keys{.bits = bits}, queries{.bits = bits};
  if (k) {
    keys = {.all_heads = k.dim(0) * kv_heads,
            .heads = kv_heads,
            .rows = k.dim(2),
            .group = 1,
            .out_rows = codes.dim(2),
            .first_out = first_position,
            .head_dim = head_dim,
            .bits = bits};
  }
  if (q) {
    queries = {.all_heads = q.dim(0) * q.dim(1),
               .heads = q.dim(1),
               .rows = q.dim(2),
               .group = q.dim(1) / kv_heads,
               .out_rows = q.dim(2),
               .first_out = 0,
               .head_dim = head_dim,
               .bits = bits};
  }
  const int64_t words =
      bits / kWarpSize * (keys.all_heads * keys.rows + queries.all_heads * queries.rows);
  dispatch_compute_dtype(q ? q.dtype() : k.dtype(), [&]<class T>() {
    launch(hash_encode_kernel<T>, num_blocks(words, kWarps), kThreads, 0, stream, keys,
           k ? k.data<T>() : nullptr, k ? codes.data<int32_t>() : nullptr,
           norms ? norms.data<float>() : nullptr, queries, q ? q.data<T>() : nullptr,
           q ? q_codes.data<int32_t>() : nullptr, weight.data<float>());
  });
}

}  // namespace switchyard
