#include "kernels/decode/hash_encode.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/device_position.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

// Rows of x [heads of all sequences, rows, head_dim] and the place of their codes.
struct Rows {
  int64_t all_heads = 0, heads = 1, rows = 0;  // of all sequences; of one; of a head
  int64_t group = 1;                           // query heads that share a projection
  int64_t out_rows = 0;                        // of a head in the codes
  DevicePosition first_out{0};                 // index of the first row there
  int64_t head_dim = 0, columns = 0, key_planes = 1;
};

// A warp computes one word of one row: lane j has column j of the word, so that the warp reads rows
// of the weight and packs the signs with a ballot.
template <class T>
__device__ void encode_word(const Rows& r, int64_t i, const T* x, const float* weight,
                            int32_t* codes, float* norms) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t words = r.columns / kWarpSize, word = i % words, row = i / words;
  const int64_t head = row / r.rows, position = row % r.rows;
  const T* vector = x + row * r.head_dim;
  const float* columns =
      weight + head % r.heads / r.group * r.head_dim * r.columns + word * kWarpSize + lane;
  float sum = 0.0f;
  for (int64_t d = 0; d < r.head_dim; ++d) {
    sum += static_cast<float>(vector[d]) * columns[d * r.columns];
  }
  const uint32_t bits = __ballot_sync(kAllLanes, sum > 0.0f);
  const int64_t out = head * r.out_rows + r.first_out.value() + position;
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
__global__ void sign_codes_kernel(Rows keys, const T* k, int32_t* codes, float* norms, Rows queries,
                                  const T* q, int32_t* q_codes, const float* weight) {
  const int64_t words = keys.columns / kWarpSize;
  const int64_t key_words = keys.all_heads * keys.rows * words;
  const int64_t query_words = queries.all_heads * queries.rows * words;
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (i < key_words) {
    encode_word(keys, i, k, weight, codes, norms);
  } else if (i < key_words + query_words) {
    encode_word(queries, i - key_words, q, weight, q_codes, static_cast<float*>(nullptr));
  }
}

// Column 32 word + lane of one key's projection.
template <class T>
__device__ float project_key(const Rows& r, int64_t kv_head, int64_t word, const T* vector,
                             const float* weight, const float* thresholds) {
  const int64_t column = word * kWarpSize + threadIdx.x % kWarpSize;
  const float* columns = weight + kv_head * r.head_dim * r.columns + column;
  float sum = -thresholds[kv_head * r.columns + column];
  for (int64_t d = 0; d < r.head_dim; ++d) {
    sum += static_cast<float>(vector[d]) * columns[d * r.columns];
  }
  return sum;
}

// The steps per unit of x that its length |x| asks for; x is projected for it.
template <class T>
__device__ float steps_of_key(const Rows& r, int64_t kv_head, const T* vector, const float* weight,
                              const float* thresholds) {
  float squares = 0.0f;
  for (int64_t word = 0; word < r.columns / kWarpSize; ++word) {
    const float x = project_key(r, kv_head, word, vector, weight, thresholds);
    squares += x * x;
  }
  squares = warp_sum(squares);
  const float steps = sqrtf(static_cast<float>(r.columns)) / key_step(r.key_planes);
  return squares > 0.0f ? steps / sqrtf(squares) : 0.0f;
}

// A warp computes all words of one key. With more than one plane it projects the key twice rather
// than keep all columns; that costs as much as the columns that a code of signs would have.
template <class T>
__device__ void encode_key(const Rows& r, int64_t row, const T* k, const float* weight,
                           const float* thresholds, int32_t* codes, float* norms) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t words = r.columns / kWarpSize, kv_head = row / r.rows % r.heads;
  const T* vector = k + row * r.head_dim;
  const int64_t out = row / r.rows * r.out_rows + r.first_out.value() + row % r.rows;
  const int half = 1 << (r.key_planes - 1);
  // The levels of one plane are signs, whatever the step.
  const float per_step =
      r.key_planes > 1 ? steps_of_key(r, kv_head, vector, weight, thresholds) : 1.0f;
  float squares = 0.0f, product = 0.0f;
  for (int64_t word = 0; word < words; ++word) {
    const float x = project_key(r, kv_head, word, vector, weight, thresholds);
    const float level = floorf(x * per_step) + static_cast<float>(half);
    const int u = static_cast<int>(fminf(fmaxf(level, 0.0f), static_cast<float>(2 * half - 1)));
    for (int64_t p = 0; p < r.key_planes; ++p) {
      const uint32_t bits = __ballot_sync(kAllLanes, (u >> p & 1) != 0);
      if (lane == 0) {
        codes[(out * r.key_planes + p) * words + word] = static_cast<int32_t>(bits);
      }
    }
    squares += x * x;
    product += x * static_cast<float>(2 * (u - half) + 1);
  }
  if (!norms) return;
  squares = warp_sum(squares);
  product = warp_sum(product);
  if (lane == 0) norms[out] = product > 0.0f ? squares / product : 0.0f;
}

// A block computes the planes of one query.
//   shared  [head_dim + columns + kWarps]: the sum over the group, its projection, scratch
template <class T>
__device__ void encode_query_planes(const Rows& r, int64_t i, const T* q, const float* weight,
                                    int32_t* q_codes) {
  constexpr int kHalf = 1 << (kQueryPlanes - 1);
  float* sum = dynamic_shared<float>();
  float* y = sum + r.head_dim;
  const int64_t words = r.columns / kWarpSize, head = i / r.rows, row = i % r.rows;
  const T* vectors = q + (head * r.group * r.rows + row) * r.head_dim;
  for (int64_t d = threadIdx.x; d < r.head_dim; d += kThreads) {
    sum[d] = 0.0f;
    for (int64_t g = 0; g < r.group; ++g) {
      sum[d] += static_cast<float>(vectors[g * r.rows * r.head_dim + d]);
    }
  }
  __syncthreads();  // the sum is visible below

  const float* columns = weight + head % r.heads * r.head_dim * r.columns;
  float most = 0.0f;
  for (int64_t j = threadIdx.x; j < r.columns; j += kThreads) {
    y[j] = 0.0f;
    for (int64_t d = 0; d < r.head_dim; ++d) y[j] += sum[d] * columns[d * r.columns + j];
    most = fmaxf(most, fabsf(y[j]));
  }
  most = block_max(most, y + r.columns);
  const float per_step = most > 0.0f ? kHalf / most : 0.0f;
  // Thread t has written y[t], y[t + kThreads] ..., and reads the same ones.
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int64_t word = warp; word < words; word += kWarps) {
    const float level = floorf(y[word * kWarpSize + lane] * per_step) + kHalf;
    const int u = static_cast<int>(fminf(fmaxf(level, 0.0f), 2 * kHalf - 1));
    for (int64_t p = 0; p < kQueryPlanes; ++p) {
      const uint32_t bits = __ballot_sync(kAllLanes, (u >> p & 1) != 0);
      const int64_t code = (head * kQueryPlanes + p) * r.rows + row;
      if (lane == 0) q_codes[code * words + word] = static_cast<int32_t>(bits);
    }
  }
}

// One launch: the first blocks encode kWarps keys each, the others a query each.
template <class T>
__global__ void plane_codes_kernel(Rows keys, const T* k, const float* key_weight,
                                   const float* thresholds, int32_t* codes, float* norms,
                                   Rows queries, const T* q, const float* query_weight,
                                   int32_t* q_codes) {
  const int64_t num_keys = keys.all_heads * keys.rows, key_blocks = ceil_div(num_keys, kWarps);
  if (blockIdx.x >= key_blocks) {
    encode_query_planes(queries, blockIdx.x - key_blocks, q, query_weight, q_codes);
    return;
  }
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (row < num_keys) encode_key(keys, row, k, key_weight, thresholds, codes, norms);
}

template <class T>
void launch_planes(Stream& stream, const Rows& keys, ConstTensorView k, const Rows& queries,
                   ConstTensorView q, const HashProjection& hash, TensorView q_codes,
                   TensorView codes, TensorView norms) {
  const int64_t key_blocks = ceil_div(keys.all_heads * keys.rows, kWarps);
  const size_t shared =
      q ? static_cast<size_t>(queries.head_dim + queries.columns + kWarps) * sizeof(float) : 0;
  launch(plane_codes_kernel<T>,
         num_blocks(key_blocks + queries.all_heads * queries.rows, int64_t{1}), kThreads, shared,
         stream, keys, k ? k.data<T>() : nullptr, hash.keys.data<float>(),
         hash.thresholds.data<float>(), k ? codes.data<int32_t>() : nullptr,
         norms ? norms.data<float>() : nullptr, queries, q ? q.data<T>() : nullptr,
         hash.queries.data<float>(), q ? q_codes.data<int32_t>() : nullptr);
}

}  // namespace

void cuda::hash_encode(Stream& stream, ConstTensorView q, ConstTensorView k,
                       const HashProjection& hash, const FirstPosition& first_position,
                       TensorView q_codes, TensorView codes, TensorView norms) {
  const ConstTensorView& weight = hash.keys;
  const bool planes = hash.query_codes() == QueryCodes::planes;
  const int64_t kv_heads = weight.dim(0), head_dim = weight.dim(1), columns = hash.columns();
  Rows keys{.columns = columns}, queries{.columns = columns};
  if (k) {
    keys = {.all_heads = k.dim(0) * kv_heads,
            .heads = kv_heads,
            .rows = k.dim(2),
            .group = 1,
            .out_rows = codes.dim(2),
            .first_out = DevicePosition(first_position),
            .head_dim = head_dim,
            .columns = columns,
            .key_planes = hash.key_planes};
  }
  if (q) {
    // The rows of signs are those of query heads, the rows of planes those of their groups.
    const int64_t heads = planes ? kv_heads : q.dim(1);
    queries = {.all_heads = q.dim(0) * heads,
               .heads = heads,
               .rows = q.dim(2),
               .group = q.dim(1) / kv_heads,
               .out_rows = q.dim(2),
               .head_dim = head_dim,
               .columns = columns};
  }
  const int64_t words =
      columns / kWarpSize * (keys.all_heads * keys.rows + queries.all_heads * queries.rows);
  dispatch_compute_dtype(q ? q.dtype() : k.dtype(), [&]<class T>() {
    if (planes) {
      return launch_planes<T>(stream, keys, k, queries, q, hash, q_codes, codes, norms);
    }
    launch(sign_codes_kernel<T>, num_blocks(words, kWarps), kThreads, 0, stream, keys,
           k ? k.data<T>() : nullptr, k ? codes.data<int32_t>() : nullptr,
           norms ? norms.data<float>() : nullptr, queries, q ? q.data<T>() : nullptr,
           q ? q_codes.data<int32_t>() : nullptr, weight.data<float>());
  });
}

}  // namespace switchyard
