#pragma once

#include <memory>
#include <string>

#include "kernels/runtime/device.h"
#include "parallel/communicator.h"
#include "parallel/watchdog.h"

namespace switchyard {

// The version of the NCCL that was loaded, "2.28.3"; empty in a build without it.
std::string nccl_version();

// Whether NCCL itself begins the collectives of all its communicators on a device in the order in
// which the host has started them. Kernels of NCCL hold multiprocessors while they wait for other
// ranks, so ranks that began them in different orders could wait for each other for ever (NCCL user
// guide, "Using multiple NCCL communicators concurrently"). NCCL does so from 2.26 on if
// NCCL_LAUNCH_ORDER_IMPLICIT is not 0 (MpiRuntime sets it unless it is set); else NcclGroups let a
// collective begin only when the one before, of whichever group, has finished.
bool nccl_orders_launches();

// NCCL's communicator of some ranks with a CUDA device each, and the stream on which all of their
// collectives run, so that they can run behind the caller's work and do so in the same order on all
// ranks. Communicators of the same ranks share one group.
class NcclGroup;

// The group of all ranks. Collective over `host`. `watchdog` must outlive the group; it watches the
// set-up, too. Throws Error if NCCL reports one.
std::shared_ptr<NcclGroup> make_nccl_world(Communicator& host, Device device, Watchdog& watchdog);

// A part of `world`, whose ranks pass the same colour, and are in the order of their ranks in the
// world. `name` is for messages. Collective over `world`.
std::shared_ptr<NcclGroup> split_nccl_group(NcclGroup& world, int colour, const std::string& name);

// Collectives of views in host memory use `host`, which has the ranks of `group`, and all others
// NCCL.
//
// The communicator itself, not NCCL, reduces bf16 (in f32, rounded once) and small tensors, in the
// order of the ranks, and also max and min, because NCCL's may lose a NaN. NCCL computes the other
// sums, which are repeatable on one machine and layout, but are added in an order of its own.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     std::shared_ptr<NcclGroup> group);

}  // namespace switchyard
