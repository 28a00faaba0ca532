#include "trainer/training/peak_memory.h"

#include <sys/resource.h>

#include "kernels/runtime/memory.h"

namespace switchyard {

int64_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;  // Linux counts in KiB
}

int64_t peak_memory_bytes(Stream& stream, Communicator& world) {
  int64_t most = peak_memory_bytes();
  if (stream.device().kind == DeviceKind::cuda) {
    const MemoryFigures device = memory_of(stream.device());
    most = static_cast<int64_t>(device.total_bytes - device.free_bytes);
  }
  world.all_reduce(stream, view_of(std::span(&most, 1)), ReduceOp::max);
  return most;
}

}  // namespace switchyard
