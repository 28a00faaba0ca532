#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "mpi/mpi_test.h"
#include "tests/support/test_device.h"
#include "trainer/training/session.h"

namespace switchyard::test {
namespace {

MpiRuntime* runtime = nullptr;

// Prints failures with their rank. A rank that leaves a test by an exception or a failed ASSERT
// would go on to the next test while other ranks may wait for it in a collective, so it ends the
// job. A failed EXPECT does not end it: that rank calls the same collectives as the others.
class FailureListener : public testing::EmptyTestEventListener {
 public:
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "[rank %d] %s:%d\n%s\n", runtime->rank(),
                 result.file_name() ? result.file_name() : "?", result.line_number(),
                 result.message());
    if (!result.fatally_failed() || runtime->world_size() == 1) return;
    std::fflush(nullptr);
    MpiRuntime::abort(EXIT_FAILURE);
  }
};

}  // namespace

MpiRuntime& test_mpi() { return *runtime; }

}  // namespace switchyard::test

int main(int argc, char** argv) {
  switchyard::MpiRuntime mpi(&argc, &argv);
  switchyard::test::runtime = &mpi;
  testing::InitGoogleTest(&argc,
                          argv);  // here suites that depend on the number of ranks read it
  const std::string device = switchyard::test::device_name();
  if (device != "cpu") switchyard::test::chosen_device() = switchyard::choose_device(mpi, device);
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  // Ranks other than 0 print failures only.
  if (mpi.rank() != 0) delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new switchyard::test::FailureListener);
  return RUN_ALL_TESTS();
}
