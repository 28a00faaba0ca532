#include "kernels/decode/hamming_scores.h"

#include "kernels/cuda/launch.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;

struct Problem {
  int64_t num_codes, shift;  // of the queries of a key/value head; code c counts 2^(c shift) times
  int64_t kv_heads, max_len, words, planes;  // words of a plane
  const int32_t* lengths;
};

// One thread scores a key; a warp reads the codes of 32 adjacent keys.
//   shared  [num_codes, words] the queries' codes
template <int kWords>
__global__ void hamming_scores_kernel(Problem p, const int32_t* q_codes, const int32_t* codes,
                                      uint16_t* distances) {
  int32_t* queries = dynamic_shared<int32_t>();
  const int64_t words = kWords > 0 ? kWords : p.words;
  const int64_t row = blockIdx.z * p.kv_heads + blockIdx.y;
  const int64_t length = p.lengths[blockIdx.z];
  if (int64_t{blockIdx.x} * kThreads >= length) return;  // the whole block
  for (int64_t i = threadIdx.x; i < p.num_codes * words; i += kThreads) {
    queries[i] = q_codes[row * p.num_codes * words + i];
  }
  __syncthreads();  // the queries' codes are visible below

  const int64_t key = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (key >= length) return;
  const int32_t* code = codes + (row * p.max_len + key) * p.planes * words;
  int distance = 0;
  for (int64_t plane = 0; plane < p.planes; ++plane) {
    for (int64_t w = 0; w < words; ++w) {
      const int32_t word = code[plane * words + w];
      for (int64_t c = 0; c < p.num_codes; ++c) {
        const auto differing = static_cast<unsigned int>(word ^ queries[c * words + w]);
        distance += __popc(differing) << (c * p.shift + plane);
      }
    }
  }
  distances[row * p.max_len + key] = static_cast<uint16_t>(distance);
}

__global__ void key_norm_scores_kernel(Problem p, const uint16_t* distances, const float* norms,
                                       float weight, float factor, float* scores) {
  const int64_t row = blockIdx.z * p.kv_heads + blockIdx.y;
  const int64_t key = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (key >= p.lengths[blockIdx.z]) return;
  const int64_t i = row * p.max_len + key;
  scores[i] = (weight - factor * static_cast<float>(distances[i])) * norms[i];
}

dim3 grid_of(const Problem& p, int64_t batch) {
  return dim3(num_blocks(p.max_len, kThreads), static_cast<unsigned int>(p.kv_heads),
              static_cast<unsigned int>(batch));
}

}  // namespace

void cuda::hamming_scores(Stream& stream, ConstTensorView q_codes, QueryCodes kind,
                          ConstTensorView codes, ConstTensorView lengths, TensorView distances) {
  const Problem p{.num_codes = q_codes.dim(1) / codes.dim(1),
                  .shift = kind == QueryCodes::planes ? 1 : 0,
                  .kv_heads = codes.dim(1),
                  .max_len = codes.dim(2),
                  .words = q_codes.dim(2),
                  .planes = codes.dim(3) / q_codes.dim(2),
                  .lengths = lengths.data<int32_t>()};
  const auto shared = static_cast<size_t>(p.num_codes * p.words) * sizeof(int32_t);
  const auto run = [&](auto kernel) {
    launch(kernel, grid_of(p, codes.dim(0)), kThreads, shared, stream, p, q_codes.data<int32_t>(),
           codes.data<int32_t>(), distances.data<uint16_t>());
  };
  if (p.words == 4) {
    run(hamming_scores_kernel<4>);
  } else if (p.words == 2) {
    run(hamming_scores_kernel<2>);
  } else {
    run(hamming_scores_kernel<0>);
  }
}

void cuda::key_norm_scores(Stream& stream, ConstTensorView distances, ConstTensorView norms,
                           ConstTensorView lengths, int64_t weight, int64_t columns,
                           TensorView scores) {
  const Problem p{.num_codes = 0,
                  .shift = 0,
                  .kv_heads = distances.dim(1),
                  .max_len = distances.dim(2),
                  .words = 0,
                  .planes = 0,
                  .lengths = lengths.data<int32_t>()};
  launch(key_norm_scores_kernel, grid_of(p, distances.dim(0)), kThreads, 0, stream, p,
         distances.data<uint16_t>(), norms.data<float>(), static_cast<float>(weight),
         2.0f / static_cast<float>(columns), scores.data<float>());
}

}  // namespace switchyard
