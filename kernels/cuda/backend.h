#pragma once

// The CUDA functions that device.cpp and memory.cpp call, declared without types of CUDA. Every
// build defines them: in device.cu, or in absent/absent.cpp if the build has no CUDA.

#include <cstddef>
#include <string>

#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"

namespace switchyard::cuda {

struct GraphState;  // support.h

// Whether the build has CUDA. In a build without it there are no devices, destroy and release do
// nothing, and every other function throws Error that says so.
bool is_in_build();

int num_devices();  // 0 without a driver
// Throws Error that says what is missing, unless the device exists.
void check_device(Device device);

void make_current(Device device);
std::string physical_name(Device device);
int num_multiprocessors(Device device);
void synchronize(Device device);

StreamState* make_stream_state(Device device);
EventState* make_event_state(Device device, bool timing);
void destroy(StreamState* state) noexcept;  // does nothing for null
void destroy(EventState* state) noexcept;
void synchronize(StreamState& state);
void synchronize(EventState& state);
bool has_finished(EventState& state);
double seconds_between(EventState& begin, EventState& end);  // waits for `end`
void wait(StreamState& stream, EventState& event);
void record(EventState& event, StreamState& stream);

// For Graph: what this thread puts into the stream is recorded from now on, and not run, until one
// of the next two is called. Work of other threads and streams goes on meanwhile.
void begin_recording(StreamState& stream);
GraphState* end_recording(StreamState& stream);
void abandon_recording(StreamState& stream) noexcept;
void destroy(GraphState* graph) noexcept;
void launch(GraphState& graph, StreamState& stream);

MemoryFigures memory_of(Device device);

// For Buffer: zero-filled device memory; if `managed`, the host can use it, too. Throws OutOfMemory
// that names `purpose`.
void* allocate(size_t num_bytes, Device device, bool managed, const char* purpose);
void release(void* address) noexcept;
// For PinnedBuffer.
void* allocate_pinned(size_t num_bytes);
void release_pinned(void* address) noexcept;

}  // namespace switchyard::cuda
