#include "kernels/linear/split_bf16.h"

#include <algorithm>

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/inline/bf16_terms.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;

struct Terms {
  int at[3];
};

__global__ void split_kernel(PartPlaces places, const float* x, Terms terms, int64_t n,
                             bfloat16* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
#pragma unroll
  for (int part = 0; part < 3; ++part) out[places.at(i, part)] = bf16_term(x[i], terms.at[part]);
}

__global__ void join_kernel(PartPlaces places, const float* x, bool adds, int64_t n, float* y) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float sum = x[places.at(i, 0)] + x[places.at(i, 1)] + x[places.at(i, 2)];
  y[i] = adds ? y[i] + sum : sum;
}

}  // namespace

void cuda::split_bf16(Stream& stream, ConstTensorView x, const std::array<Term, 3>& terms,
                      TensorView out) {
  const int64_t n = x.num_elements();
  Terms numbers{};
  std::ranges::transform(terms, numbers.at, [](Term term) { return static_cast<int>(term); });
  launch(split_kernel, num_blocks(n, kThreads), kThreads, 0, stream, PartPlaces(x, out),
         x.data<float>(), numbers, n, out.data<bfloat16>());
}

void cuda::join_terms(Stream& stream, ConstTensorView x, Accumulate accumulate, TensorView y) {
  const int64_t n = y.num_elements();
  launch(join_kernel, num_blocks(n, kThreads), kThreads, 0, stream, PartPlaces(y, x),
         x.data<float>(), accumulate == Accumulate::yes, n, y.data<float>());
}

}  // namespace switchyard
