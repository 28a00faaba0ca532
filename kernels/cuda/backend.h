#pragma once

// What device.cpp and memory.cpp ask of CUDA. Without types of CUDA, and defined in every build: in
// device.cu, or in absent/absent.cpp where the build has no CUDA.

#include <cstddef>
#include <string>

#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"

namespace switchyard::cuda {

// Whether the build has CUDA. Where it has not, there are no devices, destroying and releasing do
// nothing, and everything else throws Error that says so.
bool is_in_build();

int num_devices();  // 0 without a driver
// Throws Error unless the device is there; says what is missing.
void check_device(Device device);

void make_current(Device device);
std::string physical_name(Device device);
int num_multiprocessors(Device device);
void synchronize(Device device);

StreamState* make_stream_state(Device device);
EventState* make_event_state(Device device, bool timing);
void destroy(StreamState* state) noexcept;  // nothing for null
void destroy(EventState* state) noexcept;
void synchronize(StreamState& state);
void synchronize(EventState& state);
bool has_finished(EventState& state);
double seconds_between(EventState& begin, EventState& end);  // waits for `end`
void wait(StreamState& stream, EventState& event);
void record(EventState& event, StreamState& stream);

MemoryFigures memory_of(Device device);

// For Buffer: zero-filled device memory, or memory that the host may use, too. Throws OutOfMemory
// for `purpose`.
void* allocate(size_t num_bytes, Device device, bool managed, const char* purpose);
void release(void* address) noexcept;
// For PinnedBuffer.
void* allocate_pinned(size_t num_bytes);
void release_pinned(void* address) noexcept;

}  // namespace switchyard::cuda
