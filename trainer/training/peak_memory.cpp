#include "trainer/training/peak_memory.h"

#include <sys/resource.h>

#include "kernels/runtime/memory.h"

namespace switchyard {

int64_t peak_memory_bytes(Device device) {
  if (device.kind == DeviceKind::cuda) {
    const MemoryFigures memory = memory_of(device);
    return static_cast<int64_t>(memory.total_bytes - memory.free_bytes);
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;  // Linux counts in KiB
}

}  // namespace switchyard
