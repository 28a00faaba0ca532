#pragma once

// CUDA's own streams and events, for .cu files and for the wrappers of CUDA's libraries. Only
// kernels/ and parallel/ include this file.

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/backend.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"

namespace switchyard::cuda {

// Throws Error with the name of the call and CUDA's error text, or OutOfMemory if memory is short.
void check_cuda(cudaError_t code, const char* call);
void check_cublas(cublasStatus_t status, const char* call);

struct EpiloguePlans;   // kernels/linear/matmul_with_bias.cu
struct GroupedPlans;    // kernels/cuda/optional/grouped_lt.cpp
struct AttentionPlans;  // kernels/cuda/optional/cudnn_attention.cpp

struct SideStream {
  explicit SideStream(Device device) : stream(device), finished(device) {}
  Stream stream;
  Event finished;
};

// Values on their way to the device.
struct Upload {
  explicit Upload(Device device);
  PinnedBuffer memory;
  Event finished;
};

struct StreamState {
  Device device;
  cudaStream_t stream = nullptr;
  // Created at the first product. Each stream has its own cuBLAS workspace, so that products of two
  // streams can run at the same time and repeat bit for bit.
  cublasHandle_t cublas = nullptr;
  Buffer cublas_workspace;
  std::shared_ptr<EpiloguePlans> epilogue_plans;
  std::shared_ptr<GroupedPlans> grouped_plans;
  std::shared_ptr<AttentionPlans> attention_plans;
  Buffer reduction_scratch;
  std::deque<std::unique_ptr<Upload>> uploads;  // the oldest first
  bool is_recording = false;
  // Created by the first run_side_by_side.
  std::unique_ptr<Event> forked;
  std::vector<std::unique_ptr<SideStream>> side_streams;
};
struct EventState {
  Device device;
  cudaEvent_t event = nullptr;
};
struct GraphState {
  Device device;
  cudaGraphExec_t graph = nullptr;
};

inline cudaStream_t native_stream(const Stream& stream) { return stream.cuda()->stream; }
cublasHandle_t cublas_handle(const Stream& stream);

// Device memory of the stream for the partial results of one op; the next op may overwrite it.
// Throws Error for more than kReductionScratchBytes.
constexpr size_t kReductionScratchBytes = size_t{64} << 10;
void* reduction_scratch(const Stream& stream, size_t num_bytes);

// Copies up to kReductionScratchBytes to `target` on the device. The values travel in pinned memory
// that the stream keeps, because from other memory CUDA would copy them twice and may let the host
// wait; the host waits only where it is kMostUploads calls ahead of the device. Not for a stream
// that records, for the memory is used again.
constexpr size_t kMostUploads = 16;
void upload(Stream& stream, std::span<const std::byte> values, void* target);

// Calls piece(side stream, i) for i < count, for pieces that do not fill the device alone. The
// pieces begin after all earlier work of `stream`, and its later work begins after all pieces.
// Piece i always runs on the same side stream, and so with the same cuBLAS workspace.
void run_side_by_side(Stream& stream, int64_t count,
                      const std::function<void(Stream&, int64_t)>& piece);

// Makes `device` the calling thread's current device; restores the previous one at scope end.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

}  // namespace switchyard::cuda
