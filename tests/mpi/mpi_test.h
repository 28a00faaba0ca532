#pragma once

#include "parallel/distributed_context.h"

namespace switchyard::test {

// The one MPI runtime of the test process, which exists before suites are instantiated. Every rank
// runs every test in the same order. A rank that throws or fails an ASSERT ends all ranks.
MpiRuntime& test_mpi();

}  // namespace switchyard::test
