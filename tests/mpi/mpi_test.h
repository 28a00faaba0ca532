#pragma once

#include "parallel/distributed_context.h"

namespace switchyard::test {

// The one MPI runtime of the test process, which is there before suites are instantiated. Every
// rank runs every test, in the same order. A rank that throws or fails an ASSERT ends all of them.
MpiRuntime& test_mpi();

}  // namespace switchyard::test
