#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "kernels/runtime/device.h"

namespace switchyard {

enum class DType : uint8_t;
class Shape;
class TensorView;

// The memory of a whole device; other programs use it, too.
struct MemoryFigures {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
};
MemoryFigures memory_of(Device device);

// A device does not have enough free memory for a request. The message says the purpose, the
// requested size and the free memory.
class OutOfMemory : public Error {
 public:
  // wanted_bytes  0 if it is not known, as for memory that libraries allocate themselves
  OutOfMemory(std::string purpose, size_t wanted_bytes, Device device);

  // The purpose of the memory, such as "the gradients of head.weight". Callers that know it better
  // set it while the error passes through them; the last one counts.
  void set_purpose(std::string purpose);

  Device device() const { return device_; }
  const MemoryFigures& memory() const { return memory_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  size_t wanted_bytes_;
  Device device_;
  MemoryFigures memory_;  // at the time of the request
  std::string message_;
};

// With `on`, the host can also access buffers of CUDA devices that are made from now on (managed
// memory): for tests, which read and write tensors element by element. It is slower, and off by
// default.
void use_managed_memory(bool on);

// Owns bytes on a device, aligned to 64 and zero-filled. Move-only. On a device that only counts it
// has a size, and an address that must not be read or written.
class Buffer {
 public:
  Buffer() = default;
  // Throws OutOfMemory with `purpose` in the message.
  explicit Buffer(size_t num_bytes, Device device = {}, const char* purpose = "a buffer");

  void* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }
  Device device() const { return device_; }

 private:
  struct Free {
    DeviceKind kind;  // cpu when default-constructed
    void operator()(void* address) const;
  };
  void allocate_on_cpu(const char* purpose);

  std::unique_ptr<void, Free> allocation_;
  void* data_ = nullptr;  // the first aligned byte of the allocation
  size_t num_bytes_ = 0;
  Device device_;
};

// Host memory that CUDA devices copy from and to directly (pinned); ordinary host memory if there
// is no CUDA device. Contents are undefined. Move-only.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(size_t num_bytes);

  void* data() const { return allocation_.get(); }
  size_t num_bytes() const { return num_bytes_; }

 private:
  struct Free {
    bool pinned;
    void operator()(void* address) const;
  };
  std::unique_ptr<void, Free> allocation_;
  size_t num_bytes_ = 0;
};

// Arena for the tensors of one micro-batch: they are taken in order, and released in reverse order
// by mark and release. The memory is kept for the next micro-batch. The arena grows by chunks,
// because the number of rows depends on routing; `reset` may merge them. Contents are undefined
// when taken; builds with SWITCHYARD_DEBUG_MEMORY fill taken and released memory with NaN and check
// guard bands around every tensor (on the CPU). On a device that only counts it counts bytes and
// holds no memory.
class Workspace {
 public:
  struct Mark {
    size_t chunk;
    size_t offset;
    size_t live_bytes;
    size_t kept;
    size_t allocations;
  };

  explicit Workspace(Device device = {});

  TensorView take(const Shape& shape, DType dtype);
  // Shares the ownership of host memory that ops read, until a tensor taken at this point would be
  // released. The memory is not counted. See to_device.h.
  void keep(std::shared_ptr<const void> memory);
  Mark mark() const;
  void release(const Mark& mark);
  // Releases everything. Call between micro-batches.
  void reset();

  size_t live_bytes() const { return live_bytes_; }
  // The largest number of bytes in use at one time since construction.
  size_t high_water() const { return high_water_; }

 private:
  struct Allocation {
    std::byte* begin;
    size_t num_bytes;
  };

  bool has_guards() const { return guard_bytes_ > 0; }
  std::byte* bump(size_t num_bytes);
  void grow(size_t num_bytes);
  void check_guards(size_t first_allocation);

  Device device_;
  size_t guard_bytes_;  // 0: no guard bands
  std::vector<Buffer> chunks_;
  size_t chunk_ = 0;   // the chunk in use
  size_t offset_ = 0;  // first free byte in it
  size_t live_bytes_ = 0;
  size_t high_water_ = 0;
  std::vector<std::shared_ptr<const void>> kept_;
  std::vector<Allocation> allocations_;  // only with SWITCHYARD_DEBUG_MEMORY
};

// Releases at the end of the scope what was taken from the workspace within it.
class WorkspaceScope {
 public:
  explicit WorkspaceScope(Workspace& workspace) : workspace_(workspace), mark_(workspace.mark()) {}
  ~WorkspaceScope() { workspace_.release(mark_); }
  WorkspaceScope(const WorkspaceScope&) = delete;
  WorkspaceScope& operator=(const WorkspaceScope&) = delete;

 private:
  Workspace& workspace_;
  Workspace::Mark mark_;
};

}  // namespace switchyard
