#pragma once

#include <sched.h>

#include <cstddef>
#include <span>

namespace switchyard {

// Those on which this process may run; none if the system does not say.
cpu_set_t allowed_cores();

// The number of cores that rank `rank` of a machine may keep busy, at least 1: its cores, shared
// with all ranks that may run on any of them. of_ranks holds the cores of each rank of the machine.
int share_of_cores(std::span<const cpu_set_t> of_ranks, size_t rank);

}  // namespace switchyard
