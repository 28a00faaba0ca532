#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace switchyard {

// The communicator of one rank of a group whose other ranks do not exist, for planning on a device
// that only counts (Device::counts_only). It knows rank and size, makes the checks of all
// communicators, and moves no data: a collective's outputs keep their values, in host memory too.
std::unique_ptr<Communicator> make_counting_communicator(int rank, int size, std::string name);

}  // namespace switchyard
