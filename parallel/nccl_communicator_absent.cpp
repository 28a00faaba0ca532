// A build without NCCL uses this file in place of nccl_communicator.cpp.
#include "kernels/runtime/check.h"
#include "parallel/nccl_communicator.h"

namespace switchyard {

std::string nccl_version() { return ""; }
bool nccl_orders_launches() { return false; }

std::shared_ptr<NcclGroup> make_nccl_world(Communicator&, Device, Watchdog&) {
  fail("this build has no NCCL");
}

// No group exists that could be passed to these functions.
std::shared_ptr<NcclGroup> split_nccl_group(NcclGroup&, int, const std::string&) {
  fail("this build has no NCCL");
}
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator>,
                                                     std::shared_ptr<NcclGroup>) {
  fail("this build has no NCCL");
}

}  // namespace switchyard
