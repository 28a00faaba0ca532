#pragma once

#include <cstdlib>

#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

// The kernel suites run on whatever device the environment names in SWITCHYARD_TEST_DEVICE (cpu
// unless it is set). There Stream and Tensor mean these two.
namespace switchyard::test {

inline const char* device_name() {
  const char* name = std::getenv("SWITCHYARD_TEST_DEVICE");
  return name ? name : "cpu";
}

// For tests under MPI, whose ranks may have a device each.
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

// While it lives, buffers lie where only the device can use them, as outside of tests: there is no
// end to managed memory, and hosts swap it.
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

// On the device of the tests, and open to the host: reading or writing it waits for the device.
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

// For tests of what only the CPU bodies promise.
#define SWITCHYARD_CPU_ONLY(reason) \
  if (::switchyard::test::device().kind != ::switchyard::DeviceKind::cpu) GTEST_SKIP() << (reason)
