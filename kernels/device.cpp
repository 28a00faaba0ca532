#include "kernels/device.h"

#include "kernels/check.h"

namespace switchyard {

std::string to_string(Device device) {
  return device.kind == DeviceKind::cpu ? "cpu" : fmt::format("cuda:{}", device.index);
}

Device parse_device(std::string_view text) {
  if (text == "cpu") return {};
  require(!text.starts_with("cuda"),
          "device {} is not in this build: it was compiled for the CPU only; set run.device: cpu",
          text);
  fail("unknown device '{}': use cpu", text);
}

}  // namespace switchyard
