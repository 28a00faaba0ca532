#pragma once

// The CUDA side of device.h and memory.h, for .cu files and what wraps CUDA's libraries. Nothing
// above kernels/ and parallel/ includes this.

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"

namespace switchyard::cuda {

// Throws Error that names the call and what CUDA says of it: OutOfMemory, if it is that.
void check_cuda(cudaError_t code, const char* call);
void check_cublas(cublasStatus_t status, const char* call);

int num_devices();  // 0 without a driver
// Throws Error unless the device is there; says what is missing.
void check_device(Device device);

void make_current(Device device);
std::string physical_name(Device device);

struct EpiloguePlans;  // kernels/linear/matmul_with_bias.cu

struct SideStream {
  explicit SideStream(Device device) : stream(device), finished(device) {}
  Stream stream;
  Event finished;
};

struct StreamState {
  Device device;
  cudaStream_t stream = nullptr;
  // Made at the first product. cuBLAS gets a workspace per stream: products of two streams may then
  // run at once, and repeat bit for bit.
  cublasHandle_t cublas = nullptr;
  Buffer cublas_workspace;
  std::shared_ptr<EpiloguePlans> epilogue_plans;
  Buffer reduction_scratch;
  // Made when first needed; see run_side_by_side.
  std::unique_ptr<Event> forked;
  std::vector<std::unique_ptr<SideStream>> side_streams;
};
struct EventState {
  Device device;
  cudaEvent_t event = nullptr;
};

StreamState* make_stream_state(Device device);
EventState* make_event_state(Device device, bool timing);
void destroy(StreamState* state) noexcept;  // nothing for null
void destroy(EventState* state) noexcept;
void synchronize(Device device);
void synchronize(StreamState& state);
void synchronize(EventState& state);
bool has_finished(EventState& state);
double seconds_between(EventState& begin, EventState& end);  // waits for `end`
void wait(StreamState& stream, EventState& event);
void record(EventState& event, StreamState& stream);

inline cudaStream_t native_stream(const Stream& stream) { return stream.cuda()->stream; }
cublasHandle_t cublas_handle(const Stream& stream);

// Device memory of the stream for the partial results of one op; the next op may overwrite it.
// Throws Error for more than kReductionScratchBytes.
constexpr size_t kReductionScratchBytes = size_t{64} << 10;
void* reduction_scratch(const Stream& stream, size_t num_bytes);

// Calls piece(side stream, i) for i < count, for work that does not fill the device one piece at a
// time. Pieces begin after what `stream` holds, and what it gets later begins after all of them.
// Piece i always meets the same side stream, and so the same cuBLAS workspace.
void run_side_by_side(Stream& stream, int64_t count,
                      const std::function<void(Stream&, int64_t)>& piece);

// Blocks that run at a time, for kernels that size their grid by the device.
int num_multiprocessors(Device device);

// Makes `device` the calling thread's; restores the one before.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

MemoryFigures memory_of(Device device);

// For Buffer: zero-filled device memory, or memory that the host may use, too. Throws OutOfMemory
// for `purpose`.
void* allocate(size_t num_bytes, Device device, bool managed, const char* purpose);
void release(void* address) noexcept;
// For PinnedBuffer.
void* allocate_pinned(size_t num_bytes);
void release_pinned(void* address) noexcept;

}  // namespace switchyard::cuda
