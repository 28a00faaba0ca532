// The runtime library's part of the emulation: memory, streams and events.
#include <cuda_runtime.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

#include "kernels/check.h"

namespace simt {
namespace {

using switchyard::require;

constexpr size_t kReservedBytes = size_t{64} << 30;
constexpr size_t kPageBytes = 4096;
// What cudaMemGetInfo tells of an emulated device unless the environment says otherwise.
constexpr size_t kDefaultDeviceBytes = size_t{8} << 30;

size_t device_bytes() {
  const char* text = std::getenv("SWITCHYARD_EMULATED_DEVICE_BYTES");
  return text ? std::strtoull(text, nullptr, 10) : kDefaultDeviceBytes;
}

// One stretch of addresses that nobody may touch unless a kernel or a copy runs. Freed pieces are
// given out again whole.
class DeviceMemory {
 public:
  DeviceMemory() {
    void* base = mmap(nullptr, kReservedBytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(base != MAP_FAILED, "the emulation cannot reserve device addresses");
    base_ = static_cast<std::byte*>(base);
  }

  void* allocate(size_t num_bytes) {
    const std::lock_guard lock(mutex_);
    const size_t size = (num_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    if (used_ + size > device_bytes()) return nullptr;
    std::byte* address = nullptr;
    if (const auto found = free_.find(size); found != free_.end()) {
      address = found->second;
      free_.erase(found);
    } else {
      address = base_ + top_;
      top_ += size;
      if (top_ > kReservedBytes) return nullptr;
      if (depth_ > 0) protect(PROT_READ | PROT_WRITE);
    }
    sizes_[address] = size;
    used_ += size;
    return address;
  }

  bool release(void* address) {
    const std::lock_guard lock(mutex_);
    const auto found = sizes_.find(static_cast<std::byte*>(address));
    if (found == sizes_.end()) return false;
    free_.emplace(found->second, found->first);
    used_ -= found->second;
    sizes_.erase(found);
    return true;
  }

  void open() {
    const std::lock_guard lock(mutex_);
    if (depth_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    const std::lock_guard lock(mutex_);
    if (--depth_ == 0) protect(PROT_NONE);
  }
  size_t used() const { return used_; }

 private:
  void protect(int protection) {
    if (top_ > 0) mprotect(base_, top_, protection);
  }

  std::mutex mutex_;
  std::byte* base_ = nullptr;
  size_t top_ = 0;
  size_t used_ = 0;
  int depth_ = 0;
  std::multimap<size_t, std::byte*> free_;
  std::map<std::byte*, size_t> sizes_;
};

DeviceMemory& device_memory() {
  static DeviceMemory memory;
  return memory;
}

}  // namespace

DeviceMemoryAccess::DeviceMemoryAccess() { device_memory().open(); }
DeviceMemoryAccess::~DeviceMemoryAccess() { device_memory().close(); }

}  // namespace simt

constexpr std::align_val_t kHostAlignment{256};

const char* cudaGetErrorString(cudaError_t code) {
  switch (code) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorInvalidValue:
      break;
  }
  return "invalid argument";
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

// Few processors: kernels that size their grid by them must not emulate thousands of blocks.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : 9;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = simt::device_bytes();
  *free_bytes = *total_bytes - simt::device_memory().used();
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t num_bytes) {
  *address = simt::device_memory().allocate(num_bytes);
  return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMallocManaged(void** address, size_t num_bytes, unsigned int) {
  return cudaMallocHost(address, num_bytes);
}

cudaError_t cudaMallocHost(void** address, size_t num_bytes) {
  // Exactly as long as asked for, so that AddressSanitizer sees what goes past its end.
  *address = operator new(num_bytes, kHostAlignment, std::nothrow);
  return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void* address) {
  if (!simt::device_memory().release(address)) cudaFreeHost(address);  // managed
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* address) {
  operator delete(address, kHostAlignment);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, cudaMemcpyKind,
                            cudaStream_t) {
  const simt::DeviceMemoryAccess access;
  std::memmove(to, from, num_bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t) {
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
  const simt::DeviceMemoryAccess access;
  for (size_t row = 0; row < height; ++row) {
    std::memmove(static_cast<std::byte*>(to) + row * to_pitch,
                 static_cast<const std::byte*>(from) + row * from_pitch, width);
  }
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int byte, size_t num_bytes, cudaStream_t) {
  const simt::DeviceMemoryAccess access;
  std::memset(address, byte, num_bytes);
  return cudaSuccess;
}

struct EmulatedStream {};
struct EmulatedEvent {};

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  *stream = new EmulatedStream;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned int) { return cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
