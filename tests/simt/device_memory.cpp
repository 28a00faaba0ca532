// The emulated CUDA runtime library: devices and memory.
#include <cuda_runtime.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "tests/simt/failures.h"

namespace simt {
namespace {

using switchyard::require;

constexpr size_t kReservedBytes = size_t{64} << 30;
constexpr size_t kPageBytes = 4096;
constexpr size_t kHugePageBytes = size_t{2} << 20;
// Memory of an emulated device unless SWITCHYARD_EMULATED_DEVICE_BYTES is set.
constexpr size_t kDefaultDeviceBytes = size_t{8} << 30;

size_t device_bytes() {
  const char* text = std::getenv("SWITCHYARD_EMULATED_DEVICE_BYTES");
  return text ? std::strtoull(text, nullptr, 10) : kDefaultDeviceBytes;
}

// One range of addresses that is accessible only while a kernel or a copy runs. A freed piece is
// reused whole. To open and close the range takes as long as it has pages, so these are huge where
// the system has such, and when all pieces are free, everything begins anew.
class DeviceMemory {
 public:
  DeviceMemory() {
    void* base = mmap(nullptr, kReservedBytes + kHugePageBytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(base != MAP_FAILED, "the emulation cannot reserve device addresses");
    size_t room = kReservedBytes + kHugePageBytes;
    base_ = static_cast<std::byte*>(std::align(kHugePageBytes, kReservedBytes, base, room));
    madvise(base_, kReservedBytes, MADV_HUGEPAGE);
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
    if (sizes_.empty() && depth_ == 0) {
      free_.clear();
      top_ = 0;
    }
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
  bool holds(const void* address) const { return address >= base_ && address < base_ + top_; }

 private:
  void protect(int protection) {
    const size_t end = (top_ + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    if (end > 0) mprotect(base_, end, protection);
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

// The allocations of pinned and managed memory: size by address.
std::map<const std::byte*, size_t>& pinned_memory() {
  static auto& memory = *new std::map<const std::byte*, size_t>;  // outlives static buffers
  return memory;
}

}  // namespace

DeviceMemoryAccess::DeviceMemoryAccess() { device_memory().open(); }
DeviceMemoryAccess::~DeviceMemoryAccess() { device_memory().close(); }

bool is_pageable(const void* address) {
  if (device_memory().holds(address)) return false;
  const auto* at = static_cast<const std::byte*>(address);
  const auto after = pinned_memory().upper_bound(at);
  if (after == pinned_memory().begin()) return true;
  const auto& [begin, size] = *std::prev(after);
  return at >= begin + size;
}

}  // namespace simt

constexpr std::align_val_t kHostAlignment{256};

const char* cudaGetErrorString(cudaError_t code) {
  switch (code) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorInvalidValue:
      break;
  }
  return "invalid argument";
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace simt {
namespace {

thread_local int device_in_use = 0;  // that of a new thread is 0
std::atomic<uint64_t> contexts{0};   // a bit per device

// The devices of the machine that this process sees: CUDA_VISIBLE_DEVICES if set, else all.
std::vector<int> find_visible_devices() {
  const char* text = std::getenv("SWITCHYARD_EMULATED_DEVICES");
  const int count = text ? std::atoi(text) : 1;
  std::vector<int> devices;
  if (const char* chosen = std::getenv("CUDA_VISIBLE_DEVICES")) {
    std::istringstream list(chosen);
    for (std::string device; std::getline(list, device, ',');) devices.push_back(std::stoi(device));
    return devices;
  }
  for (int d = 0; d < count; ++d) devices.push_back(d);
  return devices;
}

const std::vector<int>& visible_devices() {
  static const std::vector<int> devices = find_visible_devices();
  return devices;
}

}  // namespace

int current_device() { return device_in_use; }

bool has_context(int device) { return (contexts >> device & 1u) != 0; }

cudaError_t enter(const char* call) {
  contexts |= uint64_t{1} << device_in_use;
  return fails(call) ? cudaErrorIllegalAddress : cudaSuccess;
}

}  // namespace simt

// All emulated devices share one memory: ranks are processes, and each uses one device.
cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(simt::visible_devices().size());
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = simt::device_in_use;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  int count = 0;
  cudaGetDeviceCount(&count);
  if (device < 0 || device >= count) return cudaErrorInvalidDevice;
  simt::device_in_use = device;
  return simt::enter("cudaSetDevice");  // makes the device's context, since CUDA 12
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  const int physical = simt::visible_devices().at(static_cast<size_t>(device));
  const auto [end, size] = fmt::format_to_n(text, length - 1, "0000:{:02x}:00.0", physical);
  *end = '\0';
  return size < static_cast<size_t>(length) ? cudaSuccess : cudaErrorInvalidValue;
}

// The device has few multiprocessors, so that kernels that size their grid by them do not make the
// emulation run thousands of blocks.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(simt::most_shared_bytes());
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *value = static_cast<int>(simt::most_blocks_across());
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = simt::device_bytes();
  *free_bytes = *total_bytes - simt::device_memory().used();
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t num_bytes) {
  if (const cudaError_t error = simt::enter("cudaMalloc")) return error;
  if (const cudaError_t error = simt::refuse_while_recording()) return error;
  *address = simt::device_memory().allocate(num_bytes);
  return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMallocManaged(void** address, size_t num_bytes, unsigned int) {
  return cudaMallocHost(address, num_bytes);
}

cudaError_t cudaMallocHost(void** address, size_t num_bytes) {
  // Exactly num_bytes long, so that AddressSanitizer sees accesses past the end.
  *address = operator new(num_bytes, kHostAlignment, std::nothrow);
  if (*address == nullptr) return cudaErrorMemoryAllocation;
  simt::pinned_memory()[static_cast<std::byte*>(*address)] = num_bytes;
  return cudaSuccess;
}

// CUDA, too, waits for the device before it frees memory.
cudaError_t cudaFree(void* address) {
  if (const cudaError_t error = simt::refuse_while_recording()) return error;
  cudaDeviceSynchronize();
  if (!simt::device_memory().release(address)) cudaFreeHost(address);  // managed
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* address) {
  if (const cudaError_t error = simt::refuse_while_recording()) return error;
  cudaDeviceSynchronize();
  simt::pinned_memory().erase(static_cast<std::byte*>(address));
  operator delete(address, kHostAlignment);
  return cudaSuccess;
}
