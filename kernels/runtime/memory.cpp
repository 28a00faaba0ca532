#include "kernels/runtime/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/cuda/backend.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/integers.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kFirstChunk = size_t{1} << 20;
constexpr unsigned char kGuardByte = 0xa5;
// Every f32 and bf16 that consists of this byte is a NaN.
constexpr unsigned char kPoisonByte = 0xff;

#ifdef SWITCHYARD_DEBUG_MEMORY
constexpr size_t kGuardBytes = kAlignment;
#else
constexpr size_t kGuardBytes = 0;
#endif

bool managed_memory = false;

// The address of all buffers of a device that only counts. No processor maps such addresses, so any
// access faults at once. 2^59 bytes from it on are free.
constexpr uintptr_t kCountedAddress = uintptr_t{1} << 60;
// The size of the only chunk of a workspace that only counts; it exceeds every request.
constexpr size_t kCountedChunk = size_t{1} << 59;

void* counted_address() {
  return reinterpret_cast<void*>(kCountedAddress);  // NOLINT: never dereferenced
}

// Large buffers ask for huge pages: the first touch of 2 MiB then costs one page fault instead of
// 512, and address translations hit the TLB more often. A refusal of the request does no harm.
constexpr size_t kHugePage = size_t{2} << 20;

void ask_for_huge_pages(void* address, size_t num_bytes) {
  if (num_bytes < 4 * kHugePage) return;
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const uintptr_t first = round_up(begin, kHugePage);
  const uintptr_t last = (begin + num_bytes) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

void* allocate_pages(size_t num_bytes) {
  void* address =
      std::aligned_alloc(kAlignment, std::max(round_up(num_bytes, kAlignment), kAlignment));
  if (address == nullptr) throw OutOfMemory("a buffer of the host", num_bytes, Device{});
  return address;
}

std::string mebibytes(size_t num_bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(num_bytes) / (1 << 20));
}

MemoryFigures memory_of_host() {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return {.free_bytes = static_cast<size_t>(sysconf(_SC_AVPHYS_PAGES)) * page,
          .total_bytes = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * page};
}

}  // namespace

MemoryFigures memory_of(Device device) {
  if (device.counts_only) return {};
  return device.runs_cuda() ? cuda::memory_of(device) : memory_of_host();
}

OutOfMemory::OutOfMemory(std::string purpose, size_t wanted_bytes, Device device)
    : Error("out of memory"),
      wanted_bytes_(wanted_bytes),
      device_(device),
      memory_(memory_of(device)) {
  set_purpose(std::move(purpose));
}

void OutOfMemory::set_purpose(std::string purpose) {
  message_ = fmt::format("out of memory on {}: {} for {}; {} of {} are free", to_string(device_),
                         wanted_bytes_ > 0 ? mebibytes(wanted_bytes_) : "memory", purpose,
                         mebibytes(memory_.free_bytes), mebibytes(memory_.total_bytes));
  // Enough memory is free, so a limit of the system refuses the request.
  if (device_.kind == DeviceKind::cpu && wanted_bytes_ < memory_.free_bytes) {
    message_ += " (the system refuses it: see ulimit -v and vm.overcommit_memory)";
  }
}

void use_managed_memory(bool on) { managed_memory = on; }

void Buffer::Free::operator()(void* address) const {
  kind == DeviceKind::cuda ? cuda::release(address) : std::free(address);
}

Buffer::Buffer(size_t num_bytes, Device device, const char* purpose)
    : num_bytes_(num_bytes), device_(device) {
  if (num_bytes == 0) return;
  if (device.counts_only) {
    data_ = counted_address();
  } else if (device.kind == DeviceKind::cuda) {
    // CUDA aligns to 256 bytes.
    data_ = cuda::allocate(num_bytes, device, managed_memory, purpose);
    allocation_ = {data_, Free{DeviceKind::cuda}};
  } else {
    allocate_on_cpu(purpose);
  }
}

void PinnedBuffer::Free::operator()(void* address) const {
  pinned ? cuda::release_pinned(address) : std::free(address);
}

PinnedBuffer::PinnedBuffer(size_t num_bytes) : num_bytes_(num_bytes) {
  const bool pinned = num_devices(DeviceKind::cuda) > 0;
  void* address = pinned ? cuda::allocate_pinned(num_bytes) : allocate_pages(num_bytes);
  allocation_ = {address, Free{pinned}};
}

void Buffer::allocate_on_cpu(const char* purpose) {
  // calloc returns zero pages, which cost nothing until they are touched.
  allocation_.reset(std::calloc(num_bytes_ + kAlignment, 1));
  if (allocation_ == nullptr) throw OutOfMemory(purpose, num_bytes_, device_);
  ask_for_huge_pages(allocation_.get(), num_bytes_);
  data_ =
      reinterpret_cast<void*>(round_up(reinterpret_cast<uintptr_t>(allocation_.get()), kAlignment));
}

// The host cannot write guard bands into a device's memory.
Workspace::Workspace(Device device)
    : device_(device), guard_bytes_(device.is_host() ? kGuardBytes : 0) {
  if (device.counts_only) chunks_.emplace_back(kCountedChunk, device);
}

std::byte* Workspace::bump(size_t num_bytes) {
  while (chunk_ < chunks_.size() && offset_ + num_bytes > chunks_[chunk_].num_bytes()) {
    ++chunk_;
    offset_ = 0;
  }
  if (chunk_ == chunks_.size()) {
    grow(num_bytes);
    offset_ = 0;
  }
  std::byte* address = static_cast<std::byte*>(chunks_[chunk_].data()) + offset_;
  offset_ += num_bytes;
  return address;
}

// Adds a quarter of the memory in use at a time, which gives few chunks and little over-allocation.
// If that much is not free, it asks for just the needed size.
void Workspace::grow(size_t num_bytes) {
  const size_t generous = std::max({num_bytes, kFirstChunk, round_up(live_bytes_ / 4, kAlignment)});
  try {
    chunks_.emplace_back(generous, device_);
  } catch (const OutOfMemory&) {
    chunks_.emplace_back(num_bytes, device_);
  }
}

TensorView Workspace::take(const Shape& shape, DType dtype) {
  const size_t payload = std::max(
      round_up(static_cast<size_t>(shape.num_elements()) * size_of(dtype), kAlignment), kAlignment);
  std::byte* address = nullptr;
  try {
    address = bump(payload + 2 * guard_bytes_);
  } catch (OutOfMemory& error) {
    error.set_purpose(fmt::format("a tensor of the workspace, {} {}, beside {} in use",
                                  to_string(dtype), shape, mebibytes(live_bytes_)));
    throw;
  }
  live_bytes_ += payload;
  high_water_ = std::max(high_water_, live_bytes_);
  if (has_guards()) {
    std::memset(address, kGuardByte, kGuardBytes);
    std::memset(address + kGuardBytes, kPoisonByte, payload);
    std::memset(address + kGuardBytes + payload, kGuardByte, kGuardBytes);
    allocations_.push_back({address, payload});
  }
  return {address + guard_bytes_, shape, dtype, device_};
}

void Workspace::keep(std::shared_ptr<const void> memory) { kept_.push_back(std::move(memory)); }

Workspace::Mark Workspace::mark() const {
  return {chunk_, offset_, live_bytes_, kept_.size(), allocations_.size()};
}

void Workspace::release(const Mark& mark) {
  if (has_guards()) check_guards(mark.allocations);
  chunk_ = mark.chunk;
  offset_ = mark.offset;
  live_bytes_ = mark.live_bytes;
  kept_.resize(mark.kept);
}

void Workspace::check_guards(size_t first_allocation) {
  const auto intact = [](const std::byte* band) {
    return std::all_of(band, band + kGuardBytes,
                       [](std::byte b) { return b == std::byte{kGuardByte}; });
  };
  for (size_t i = first_allocation; i < allocations_.size(); ++i) {
    const auto& [begin, num_bytes] = allocations_[i];
    if (!intact(begin) || !intact(begin + kGuardBytes + num_bytes)) {
      // This is not an exception: release runs in destructors, and memory is already damaged.
      std::fprintf(stderr, "workspace: a tensor of %zu bytes was written out of bounds\n",
                   num_bytes);
      std::abort();
    }
    std::memset(begin, kPoisonByte, num_bytes + 2 * kGuardBytes);
  }
  allocations_.resize(first_allocation);
}

void Workspace::reset() {
  release({});
  size_t total = 0;
  for (const Buffer& chunk : chunks_) total += chunk.num_bytes();
  // New memory of the host costs time when its pages are first touched, as much as all other work
  // on them in a small step. The chunks are kept unless they hold much more than is needed.
  const bool keeps = device_.is_host() && total <= high_water_ + high_water_ / 2;
  if (chunks_.size() <= 1 || keeps) return;
  chunks_.clear();
  chunks_.emplace_back(total, device_);
}

}  // namespace switchyard
