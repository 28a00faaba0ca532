#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "mpi/mpi_test.h"
#include "tests/support/test_device.h"
#include "trainer/training/session.h"

namespace switchyard::test {
namespace {

MpiRuntime* runtime = nullptr;

// Ranks other than 0 speak only when they have something to say.
class OnlyFailures : public testing::EmptyTestEventListener {
 public:
  explicit OnlyFailures(int rank) : rank_(rank) {}
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    fprintf(stderr, "[rank %d] %s:%d\n%s\n", rank_, result.file_name() ? result.file_name() : "?",
            result.line_number(), result.message());
  }

 private:
  int rank_;
};

}  // namespace

MpiRuntime& test_mpi() { return *runtime; }

}  // namespace switchyard::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  switchyard::MpiRuntime mpi(&argc, &argv);
  switchyard::test::runtime = &mpi;
  const std::string device = switchyard::test::device_name();
  if (device != "cpu") switchyard::test::chosen_device() = switchyard::choose_device(mpi, device);
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (mpi.rank() != 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new switchyard::test::OnlyFailures(mpi.rank()));
  }
  return RUN_ALL_TESTS();
}
