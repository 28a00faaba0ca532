#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace switchyard {

// The communicator of one rank of a group whose other ranks are not there, for planning on a device
// that only counts (Device::counts_only). It knows rank and size, refuses what the others refuse,
// and moves nothing: what a collective would write stays as it is, in host memory too.
std::unique_ptr<Communicator> make_counting_communicator(int rank, int size, std::string name);

}  // namespace switchyard
