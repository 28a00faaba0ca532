#include "kernels/cuda/device_limits.h"

#include "kernels/cuda/support.h"
#include "kernels/runtime/check.h"

namespace switchyard::cuda {

void require_shared_memory(const Stream& stream, size_t num_bytes, const std::string& work) {
  int most = 0;
  check_cuda(
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device().index),
      "cudaDeviceGetAttribute");
  require(num_bytes <= static_cast<size_t>(most),
          "{} needs {} KiB of shared memory for a block of threads, and {} has {} KiB; use a "
          "smaller model.head_dim, or a device with more",
          work, (num_bytes + 1023) / 1024, to_string(stream.device()), most / 1024);
}

}  // namespace switchyard::cuda
