#pragma once

// CUDA's execution model on the host: one fiber per CUDA thread, blocks one after the other.
// Barriers, shuffles and votes are meeting points. Threads run in an order that changes from phase
// to phase, so that a missing barrier shows as a wrong result. A barrier that not every thread
// reaches, and lanes that wait at different meeting points, end the launch with an Error that names
// the place.

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

struct Index {
  unsigned int x = 0, y = 0, z = 0;
};

// As in CUDA, missing extents are 1.
struct Extent {
  unsigned int x = 1, y = 1, z = 1;
  constexpr Extent(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)  // NOLINT
      : x(x_), y(y_), z(z_) {}
};

// Lets the host access device memory while an object of this class exists; see device_memory.cpp.
// Objects may be nested.
class DeviceMemoryAccess {
 public:
  DeviceMemoryAccess();
  ~DeviceMemoryAccess();
  DeviceMemoryAccess(const DeviceMemoryAccess&) = delete;
  DeviceMemoryAccess& operator=(const DeviceMemoryAccess&) = delete;
};

// Whether this memory is ordinary host memory: neither device memory nor pinned nor managed.
bool is_pageable(const void* address);
// Asynchronous copies so far that read such memory.
int64_t pageable_copies();

// The device's limits: the bytes of shared memory of a block, and the blocks of a grid in y and z.
size_t most_shared_bytes();
unsigned int most_blocks_across();

// Runs body() once for every thread of every block. Throws switchyard::Error for a launch that CUDA
// would refuse and for threads that would wait for ever.
void run_grid(Extent grid, Extent block, size_t shared_bytes, const std::function<void()>& body);

// Of the running CUDA thread.
const Index& thread_index();
const Index& block_index();
const Extent& block_extent();
const Extent& grid_extent();
int lane();
void* dynamic_shared_memory();

// How many bytes kernels have read by __ldcs.
void count_streamed_bytes(size_t num_bytes);
size_t streamed_bytes();

// Asynchronous copies of the running thread. A copy is made only when the thread waits for it.
void start_copy(void* shared, const void* global, size_t num_bytes);
void commit_copies();
void wait_for_copies(int pending);

// The barrier of all threads of the block that have not ended. `line` tells barriers apart.
void sync_block(int line);

// The lanes of `mask` meet; each gives `size` bytes, `mine`, and sees what all gave. That of lane l
// is at kSlotBytes l of the result, which is valid until its next meeting.
constexpr size_t kSlotBytes = 64;
const std::byte* meet_warp(uint32_t mask, const void* mine, size_t size);

}  // namespace simt
