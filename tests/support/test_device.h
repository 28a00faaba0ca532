#pragma once

#include <cstdlib>

#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

// The kernel suites run on the device that the environment variable SWITCHYARD_TEST_DEVICE names
// (cpu by default). They use the Stream, Tensor and Workspace declared here.
namespace switchyard::test {

inline const char* device_name() {
  const char* name = std::getenv("SWITCHYARD_TEST_DEVICE");
  return name ? name : "cpu";
}

// Tests under MPI, whose ranks may each have a device, assign to it.
inline Device& chosen_device() {
  static Device chosen = parse_device(device_name());
  return chosen;
}

inline Device device() {
  static const Device device = [] {
    use_managed_memory(chosen_device().kind == DeviceKind::cuda);
    return chosen_device();
  }();
  return device;
}

// While an object of this class exists, buffers are in memory that only the device can access, as
// outside of tests. Managed memory never runs out, because hosts swap it.
class DeviceOnlyMemory {
 public:
  DeviceOnlyMemory() {
    device();
    use_managed_memory(false);
  }
  ~DeviceOnlyMemory() { use_managed_memory(device().kind == DeviceKind::cuda); }
  DeviceOnlyMemory(const DeviceOnlyMemory&) = delete;
  DeviceOnlyMemory& operator=(const DeviceOnlyMemory&) = delete;
};

class Stream : public switchyard::Stream {
 public:
  Stream() : switchyard::Stream(test::device()) {}
};

// A tensor on the device of the tests that the host can access: data() waits for the device.
class Tensor : public switchyard::Tensor {
 public:
  Tensor() = default;
  Tensor(Shape shape, DType dtype) : switchyard::Tensor(shape, dtype, test::device()) {}

  template <class T>
  T* data() {
    synchronize(test::device());
    return switchyard::Tensor::data<T>();
  }
  template <class T>
  const T* data() const {
    synchronize(test::device());
    return switchyard::Tensor::data<T>();
  }
};

class Workspace : public switchyard::Workspace {
 public:
  Workspace() : switchyard::Workspace(test::device()) {}
};

}  // namespace switchyard::test

// Skips tests of guarantees that only the CPU bodies give.
#define SWITCHYARD_CPU_ONLY(reason) \
  if (::switchyard::test::device().kind != ::switchyard::DeviceKind::cpu) GTEST_SKIP() << (reason)
