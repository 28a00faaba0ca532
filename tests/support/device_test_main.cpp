#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/support/test_device.h"

// ctest reads this exit code as "skipped".
constexpr int kSkipped = 77;

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  const std::string_view name = switchyard::test::device_name();
  if (name != "cpu" && switchyard::num_devices(switchyard::DeviceKind::cuda) == 0) {
    const char* required = std::getenv("SWITCHYARD_REQUIRE_CUDA");
    const bool must_run = required && std::string_view(required) == "1";
    std::printf("[  SKIPPED ] there is no CUDA device%s\n",
                must_run ? ", but SWITCHYARD_REQUIRE_CUDA=1 needs one" : "");
    return must_run ? EXIT_FAILURE : kSkipped;
  }
  return RUN_ALL_TESTS();
}
