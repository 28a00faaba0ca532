#pragma once

#include <string>

// Calls of the emulated CUDA and NCCL that fail or never return, for tests of what the program does
// then. The environment of the process, as it was at the first call, names them:
//   SWITCHYARD_EMULATED_FAILURE=CALL:N  the N-th call (from 1) of this name fails, and so do later
//                                       ones, and every later call of CUDA, as after an illegal
//                                       access of a kernel
//   SWITCHYARD_EMULATED_HANG=CALL:N     the N-th call of this name and later ones never return
namespace simt {

bool fails(const char* call);

// While an object of this class exists, calls fail as its plan, CALL:N, says.
class PlannedFailure {
 public:
  explicit PlannedFailure(const std::string& plan);
  ~PlannedFailure();
  PlannedFailure(const PlannedFailure&) = delete;
  PlannedFailure& operator=(const PlannedFailure&) = delete;
};

}  // namespace simt
