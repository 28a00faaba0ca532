#include "kernels/cuda/grouped_cutlass.h"

#include "kernels/runtime/check.h"

namespace switchyard::cuda {

bool has_grouped_cutlass_in_build() { return false; }
bool has_grouped_cutlass(Device) { return false; }

void grouped_cutlass_forward(Stream&, const ExpertProblems&, const ActivationEpilogue&) {
  fail("CUTLASS is not in this build");
}

void grouped_cutlass_backward(Stream&, const ExpertProblems&, const ActivationEpilogue&) {
  fail("CUTLASS is not in this build");
}

}  // namespace switchyard::cuda
