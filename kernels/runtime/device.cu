#include "kernels/runtime/device.h"

#include <cstring>
#include <memory>
#include <utility>

#include "kernels/cuda/support.h"
#include "kernels/runtime/check.h"

namespace switchyard::cuda {
namespace {

// NVIDIA recommends this size for Hopper.
constexpr size_t kCublasWorkspaceBytes = size_t{32} << 20;

Device current_device() {
  int index = 0;
  cudaGetDevice(&index);
  return {DeviceKind::cuda, index};
}

}  // namespace

void check_cuda(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // else the next call would report the error again
  // CUDA also allocates memory for itself, such as for loaded code and stacks of threads.
  if (code == cudaErrorMemoryAllocation) throw OutOfMemory(call, 0, current_device());
  fail("{} failed: {}", call, cudaGetErrorString(code));
}

void check_cublas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfMemory(call, 0, current_device());
  require(status == CUBLAS_STATUS_SUCCESS, "{} failed: {}", call, cublasGetStatusString(status));
}

bool is_in_build() { return true; }

int num_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

void check_device(Device device) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) {
    cudaGetLastError();
    fail(
        "{} cannot be used: {}; install an NVIDIA driver that is new enough, or set run.device: "
        "cpu",
        to_string(device), cudaGetErrorString(code));
  }
  require(device.index < count, "{} is not there: this machine has {} CUDA device{}",
          to_string(device), count, count == 1 ? "" : "s");
}

void make_current(Device device) { check_cuda(cudaSetDevice(device.index), "cudaSetDevice"); }

std::string physical_name(Device device) {
  char text[32] = {};
  check_cuda(cudaDeviceGetPCIBusId(text, sizeof(text), device.index), "cudaDeviceGetPCIBusId");
  return text;
}

DeviceGuard::DeviceGuard(Device device) {
  check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
  if (previous_ != device.index) check_cuda(cudaSetDevice(device.index), "cudaSetDevice");
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(previous_); }

StreamState* make_stream_state(Device device) {
  cuda::check_device(device);
  const DeviceGuard guard(device);
  auto state = std::make_unique<StreamState>();
  state->device = device;
  check_cuda(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking), "cudaStreamCreate");
  state->reduction_scratch = Buffer(kReductionScratchBytes, device, "the scratch of a stream");
  return state.release();
}

cublasHandle_t cublas_handle(const Stream& stream) {
  StreamState& state = *stream.cuda();
  if (state.cublas != nullptr) return state.cublas;
  const DeviceGuard guard(state.device);
  check_cublas(cublasCreate(&state.cublas), "cublasCreate");
  check_cublas(cublasSetStream(state.cublas, state.stream), "cublasSetStream");
  // This mode adds the parts of a split inner dimension in f32, not in bf16.
  const auto math = static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                              CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  check_cublas(cublasSetMathMode(state.cublas, math), "cublasSetMathMode");
  state.cublas_workspace = Buffer(kCublasWorkspaceBytes, state.device, "the workspace of cuBLAS");
  check_cublas(
      cublasSetWorkspace(state.cublas, state.cublas_workspace.data(), kCublasWorkspaceBytes),
      "cublasSetWorkspace");
  return state.cublas;
}

EventState* make_event_state(Device device, bool timing) {
  const DeviceGuard guard(device);
  auto state = std::make_unique<EventState>();
  state->device = device;
  const unsigned int flags = timing ? cudaEventDefault : cudaEventDisableTiming;
  check_cuda(cudaEventCreateWithFlags(&state->event, flags), "cudaEventCreate");
  return state.release();
}

void destroy(StreamState* state) noexcept {
  if (state == nullptr) return;
  state->attention_plans.reset();  // cuDNN's handle knows the stream
  if (state->cublas != nullptr) cublasDestroy(state->cublas);
  cudaStreamDestroy(state->stream);
  delete state;
}

void destroy(EventState* state) noexcept {
  if (state == nullptr) return;
  cudaEventDestroy(state->event);
  delete state;
}

void synchronize(Device device) {
  const DeviceGuard guard(device);
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

void synchronize(StreamState& state) {
  check_cuda(cudaStreamSynchronize(state.stream), "cudaStreamSynchronize");
}

void synchronize(EventState& state) {
  check_cuda(cudaEventSynchronize(state.event), "cudaEventSynchronize");
}

bool has_finished(EventState& state) {
  const cudaError_t code = cudaEventQuery(state.event);
  if (code == cudaErrorNotReady) return false;
  check_cuda(code, "cudaEventQuery");
  return true;
}

double seconds_between(EventState& begin, EventState& end) {
  synchronize(end);
  float milliseconds = 0.0f;
  check_cuda(cudaEventElapsedTime(&milliseconds, begin.event, end.event), "cudaEventElapsedTime");
  return 1e-3 * static_cast<double>(milliseconds);
}

void wait(StreamState& stream, EventState& event) {
  check_cuda(cudaStreamWaitEvent(stream.stream, event.event, 0), "cudaStreamWaitEvent");
}

void record(EventState& event, StreamState& stream) {
  check_cuda(cudaEventRecord(event.event, stream.stream), "cudaEventRecord");
}

// The mode binds this thread alone: the watchdog's thread goes on asking for its events, which a
// recording of the whole process would forbid.
void begin_recording(StreamState& stream) {
  check_cuda(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
  stream.is_recording = true;
}

GraphState* end_recording(StreamState& stream) {
  stream.is_recording = false;
  cudaGraph_t recorded = nullptr;
  check_cuda(cudaStreamEndCapture(stream.stream, &recorded), "cudaStreamEndCapture");
  auto state = std::make_unique<GraphState>();
  state->device = stream.device;
  const cudaError_t code = cudaGraphInstantiate(&state->graph, recorded, 0);
  cudaGraphDestroy(recorded);
  check_cuda(code, "cudaGraphInstantiate");
  return state.release();
}

void abandon_recording(StreamState& stream) noexcept {
  stream.is_recording = false;
  cudaGraph_t recorded = nullptr;
  cudaStreamEndCapture(stream.stream, &recorded);
  if (recorded != nullptr) cudaGraphDestroy(recorded);
  cudaGetLastError();  // The call that failed has been reported.
}

void destroy(GraphState* graph) noexcept {
  if (graph == nullptr) return;
  cudaGraphExecDestroy(graph->graph);
  delete graph;
}

void launch(GraphState& graph, StreamState& stream) {
  check_cuda(cudaGraphLaunch(graph.graph, stream.stream), "cudaGraphLaunch");
}

void* reduction_scratch(const Stream& stream, size_t num_bytes) {
  const Buffer& scratch = stream.cuda()->reduction_scratch;
  require(num_bytes <= scratch.num_bytes(), "{} bytes of partial results exceed the scratch of {}",
          num_bytes, scratch.num_bytes());
  return scratch.data();
}

Upload::Upload(Device device) : memory(kReductionScratchBytes), finished(device) {}

void upload(Stream& stream, std::span<const std::byte> values, void* target) {
  StreamState& state = *stream.cuda();
  require(!state.is_recording, "a stream that records cannot copy from memory that changes");
  require(values.size() <= kReductionScratchBytes, "{} bytes are too many to upload at once",
          values.size());
  auto& uploads = state.uploads;
  if (uploads.empty() || !uploads.front()->finished.has_finished()) {
    if (uploads.size() == kMostUploads) {
      uploads.front()->finished.synchronize();
    } else {
      uploads.push_front(std::make_unique<Upload>(state.device));
    }
  }
  uploads.push_back(std::move(uploads.front()));
  uploads.pop_front();
  Upload& next = *uploads.back();
  std::memcpy(next.memory.data(), values.data(), values.size());
  check_cuda(cudaMemcpyAsync(target, next.memory.data(), values.size(), cudaMemcpyHostToDevice,
                             state.stream),
             "cudaMemcpyAsync");
  next.finished.record(stream);
}

void run_side_by_side(Stream& stream, int64_t count,
                      const std::function<void(Stream&, int64_t)>& piece) {
  constexpr size_t kSideStreams = 8;
  StreamState& state = *stream.cuda();
  if (!state.forked) {
    state.forked = std::make_unique<Event>(state.device);
    while (state.side_streams.size() < kSideStreams) {
      state.side_streams.push_back(std::make_unique<SideStream>(state.device));
    }
  }
  state.forked->record(stream);
  for (const auto& side : state.side_streams) side->stream.wait(*state.forked);
  for (int64_t i = 0; i < count; ++i) {
    piece(state.side_streams[static_cast<size_t>(i) % kSideStreams]->stream, i);
  }
  for (const auto& side : state.side_streams) {
    side->finished.record(side->stream);
    stream.wait(side->finished);
  }
}

int num_multiprocessors(Device device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index),
             "cudaDeviceGetAttribute");
  return count;
}

MemoryFigures memory_of(Device device) {
  const DeviceGuard guard(device);
  MemoryFigures figures;
  require(cudaMemGetInfo(&figures.free_bytes, &figures.total_bytes) == cudaSuccess,
          "cannot read how much memory {} has", to_string(device));
  return figures;
}

void* allocate(size_t num_bytes, Device device, bool managed, const char* purpose) {
  const DeviceGuard guard(device);
  void* address = nullptr;
  const cudaError_t code = managed ? cudaMallocManaged(&address, num_bytes, cudaMemAttachGlobal)
                                   : cudaMalloc(&address, num_bytes);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfMemory(purpose, num_bytes, device);
  }
  check_cuda(code, "cudaMalloc");
  // Other streams do not wait for the legacy stream, on which the fill runs, so the host waits.
  check_cuda(cudaMemsetAsync(address, 0, num_bytes, nullptr), "cudaMemset");
  check_cuda(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
  return address;
}

void release(void* address) noexcept { cudaFree(address); }

void* allocate_pinned(size_t num_bytes) {
  void* address = nullptr;
  const cudaError_t code = cudaMallocHost(&address, num_bytes);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfMemory("a buffer in pinned host memory", num_bytes, Device{});
  }
  check_cuda(code, "cudaMallocHost");
  return address;
}

void release_pinned(void* address) noexcept { cudaFreeHost(address); }

}  // namespace switchyard::cuda
