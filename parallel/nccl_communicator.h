#pragma once

#include <memory>
#include <string>

#include "kernels/runtime/device.h"
#include "parallel/communicator.h"
#include "parallel/watchdog.h"

namespace switchyard {

// The version of the NCCL that was loaded, "2.28.3"; empty in a build without it.
std::string nccl_version();

// A group of ranks with a CUDA device each, over NCCL. Collectives of views in host memory use
// `host`. All others run on one stream that the group owns, so that they can run behind the
// caller's work, and run in the same order on all ranks.
//
// The group itself, not NCCL, reduces bf16 (in f32, rounded once) and small tensors, in the order
// of the ranks, and also max and min, because NCCL's may lose a NaN. NCCL computes the other sums,
// which are repeatable on one machine and layout, but are added in an order of its own.
//
// Collective over `host`. `watchdog` must outlive the group. Throws Error if NCCL reports one.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     Device device, Watchdog& watchdog);

}  // namespace switchyard
