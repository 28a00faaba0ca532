#pragma once

#include "parallel/distributed_context.h"

namespace switchyard::test {

// The one MPI runtime of the test process. Every rank runs every test, in the same order.
MpiRuntime& test_mpi();

}  // namespace switchyard::test
