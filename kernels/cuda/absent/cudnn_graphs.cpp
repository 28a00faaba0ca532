#include "kernels/cuda/cudnn_graphs.h"

#include "kernels/runtime/check.h"

namespace switchyard::cuda {

bool has_cudnn_in_build() { return false; }
bool has_cudnn() { return false; }
std::optional<size_t> cudnn_scratch_bytes(Stream&, const CudnnProblem&) { return std::nullopt; }

void run_cudnn(Stream&, const CudnnProblem&, const CudnnOperands&, void*) {
  fail("cuDNN is not in this build");
}

}  // namespace switchyard::cuda
