// A build without NCCL uses this file in place of nccl_communicator.cpp.
#include "kernels/runtime/check.h"
#include "parallel/nccl_communicator.h"

namespace switchyard {

std::string nccl_version() { return ""; }

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator>, Device,
                                                     Watchdog&) {
  fail("this build has no NCCL");
}

}  // namespace switchyard
