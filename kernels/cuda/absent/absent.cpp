// The backend of a build without CUDA (kernels/cuda/backend.h).
#include "kernels/cuda/backend.h"
#include "kernels/runtime/check.h"

namespace switchyard::cuda {
namespace {

[[noreturn]] void fail_on(const std::string& device) {
  fail("device {} is not in this build: it was compiled for the CPU only; use cpu", device);
}

}  // namespace

bool is_in_build() { return false; }
int num_devices() { return 0; }

void check_device(Device device) { fail_on(to_string(device)); }
void make_current(Device device) { fail_on(to_string(device)); }
std::string physical_name(Device device) { fail_on(to_string(device)); }
int num_multiprocessors(Device device) { fail_on(to_string(device)); }
void synchronize(Device device) { fail_on(to_string(device)); }
MemoryFigures memory_of(Device device) { fail_on(to_string(device)); }
StreamState* make_stream_state(Device device) { fail_on(to_string(device)); }
EventState* make_event_state(Device device, bool) { fail_on(to_string(device)); }
void* allocate(size_t, Device device, bool, const char*) { fail_on(to_string(device)); }

// No object exists that could be passed to these functions.
void destroy(StreamState*) noexcept {}
void destroy(EventState*) noexcept {}
void destroy(GraphState*) noexcept {}
void release(void*) noexcept {}
void release_pinned(void*) noexcept {}
void* allocate_pinned(size_t) { fail_on("cuda"); }
void synchronize(StreamState&) { fail_on("cuda"); }
void synchronize(EventState&) { fail_on("cuda"); }
bool has_finished(EventState&) { fail_on("cuda"); }
double seconds_between(EventState&, EventState&) { fail_on("cuda"); }
void wait(StreamState&, EventState&) { fail_on("cuda"); }
void record(EventState&, StreamState&) { fail_on("cuda"); }
void begin_recording(StreamState&) { fail_on("cuda"); }
GraphState* end_recording(StreamState&) { fail_on("cuda"); }
void abandon_recording(StreamState&) noexcept {}
void launch(GraphState&, StreamState&) { fail_on("cuda"); }

}  // namespace switchyard::cuda
