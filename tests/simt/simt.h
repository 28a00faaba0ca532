#pragma once

// CUDA's execution model on the host: one fiber per CUDA thread, blocks one after the other.
// Barriers, shuffles and votes are meeting points. Threads run in an order that changes from phase
// to phase, so that a missing barrier shows as a wrong result; a barrier that not every thread
// reaches, and lanes that wait for different things, end the launch with an Error that says where
// they stand.

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

struct Index {
  unsigned int x = 0, y = 0, z = 0;
};

// As CUDA's: missing extents are 1.
struct Extent {
  unsigned int x = 1, y = 1, z = 1;
  constexpr Extent(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)  // NOLINT
      : x(x_), y(y_), z(z_) {}
};

// Opens device memory to the host while it lives; see device_memory.cpp. May be nested.
class DeviceMemoryAccess {
 public:
  DeviceMemoryAccess();
  ~DeviceMemoryAccess();
  DeviceMemoryAccess(const DeviceMemoryAccess&) = delete;
  DeviceMemoryAccess& operator=(const DeviceMemoryAccess&) = delete;
};

// Whether CUDA knows nothing of this memory: neither a device's nor pinned nor managed.
bool is_pageable(const void* address);

// Runs body() once for every thread of every block. Throws switchyard::Error for a launch that CUDA
// would refuse, and for threads that wait for ever.
void run_grid(Extent grid, Extent block, size_t shared_bytes, const std::function<void()>& body);

// Of the running thread.
const Index& thread_index();
const Index& block_index();
const Extent& block_extent();
const Extent& grid_extent();
int lane();
void* dynamic_shared_memory();

// Asynchronous copies of the running thread. They land as late as they may: when it waits for them.
void start_copy(void* shared, const void* global, size_t num_bytes);
void commit_copies();
void wait_for_copies(int pending);

// All threads of the block that have not ended. `line` tells one barrier from another.
void sync_block(int line);

// The lanes of `mask` meet; each gives `size` bytes and then sees what all lanes gave.
//   mine    this lane's bytes
//   gather  called with every lane's bytes, lane l at all + l * kSlotBytes
constexpr size_t kSlotBytes = 64;
void meet_warp(uint32_t mask, const void* mine, size_t size,
               const std::function<void(const std::byte* all)>& gather);

}  // namespace simt
