#include "tests/simt/careless_kernel.h"

#include "kernels/cuda/launch.h"

namespace switchyard::test {
namespace {

template <int kSize>
__global__ void careless_kernel(float* out) {
  __shared__ float values[kSize];
  out[blockIdx.x] = values[kSize - 1];
  values[kSize - 1] = 1.0f;
}

}  // namespace

void read_uninitialised_shared_memory(Stream& stream, float* out) {
  cuda::launch(careless_kernel<5>, dim3(2), dim3(1), 0, stream, out);
}

}  // namespace switchyard::test
