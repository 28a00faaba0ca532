#pragma once

// Streams and events as CUDA knows them, for .cu files and what wraps CUDA's libraries. Nothing
// above kernels/ and parallel/ includes this.

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/cuda/backend.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"

namespace switchyard::cuda {

// Throws Error that names the call and what CUDA says of it: OutOfMemory, if it is that.
void check_cuda(cudaError_t code, const char* call);
void check_cublas(cublasStatus_t status, const char* call);

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

}  // namespace switchyard::cuda
