#pragma once

#include <string>
#include <string_view>

namespace switchyard {

enum class DeviceKind { cpu, cuda };

// Where memory lies and ops run. A value.
struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;

  bool operator==(const Device&) const = default;
};

std::string to_string(Device device);

// "cpu", "cuda" or "cuda:1". Throws Error for anything else, and for cuda in a build without it.
Device parse_device(std::string_view text);

// An ordered queue of work on one device; the first argument of every op. Ops on the CPU have
// finished when they return.
class Stream {
 public:
  explicit Stream(Device device = {}) : device_(device) {}

  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }

  // Returns when everything put into the stream has finished.
  void synchronize() {}

 private:
  Device device_;
};

}  // namespace switchyard
