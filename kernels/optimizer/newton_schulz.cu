#include "kernels/optimizer/newton_schulz.h"

#include "kernels/cuda/launch.h"

namespace switchyard {
namespace {

constexpr int kThreads = 256;

__global__ void divide_by_norm_kernel(const double* sum_of_squares, double eps, float* x,
                                      int64_t n) {
  const auto factor = static_cast<float>(1.0 / (sqrt(*sum_of_squares) + eps));
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= factor;
}

}  // namespace

void cuda::divide_by_norm(Stream& stream, ConstTensorView sum_of_squares, double eps,
                          TensorView x) {
  const int64_t n = x.num_elements();
  launch(divide_by_norm_kernel, num_blocks(n, kThreads), kThreads, 0, stream,
         sum_of_squares.data<double>(), eps, x.data<float>(), n);
}

}  // namespace switchyard
