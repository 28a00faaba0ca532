#pragma once

#include <memory>
#include <string>

#include "kernels/runtime/device.h"
#include "parallel/communicator.h"
#include "parallel/watchdog.h"

namespace switchyard {

// The version of the NCCL that was loaded, "2.28.3"; empty in a build without it.
std::string nccl_version();

// A group of ranks with a CUDA device each, over NCCL. Views in host memory go over `host`.
// Everything runs on one stream of the group's own, so that it can go on behind the caller's work,
// and in the same order on all ranks.
//
// bf16, and whatever is small, is reduced by ourselves in the order of the ranks, bf16 in f32 with
// one rounding; so are max and min, because NCCL's may lose a NaN. Large sums are NCCL's:
// repeatable on one machine and layout, but in an order of its own.
//
// Collective over `host`. `watchdog` must outlive the group. Throws Error for what NCCL reports.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     Device device, Watchdog& watchdog);

}  // namespace switchyard
