// The emulated CUDA runtime library: streams, events and copies.
//
// The work of a stream runs only when its result is needed: when the host synchronises, or when
// another stream that waits for an event runs. A consumer that does not wait therefore reads old
// values here, and memory that is reused too early is overwritten before it was read. On a device
// both errors show seldom, and never under a debugger.
#include <cuda_runtime.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"

namespace simt {
namespace {

// Tasks in order, counted since the stream was made. A task returns whether it has finished: one
// that waits for other ranks is called again. The thread of the watchdog reads `finished`.
struct Queue {
  std::deque<std::function<bool()>> tasks;
  std::atomic<uint64_t> finished = 0;
  uint64_t joint_end = 0;  // behind the last task that needs other ranks

  uint64_t end() const { return finished + tasks.size(); }
  // Runs the tasks before `position`; returns false if one of them waits for other ranks.
  bool advance(uint64_t position) {
    while (finished < position) {
      bool is_done = true;
      try {
        is_done = tasks.front()();
      } catch (...) {
        drop_first();
        throw;
      }
      if (!is_done) return false;
      drop_first();
    }
    return true;
  }

 private:
  void drop_first() {
    tasks.pop_front();
    ++finished;
  }
};

// The queues of existing streams and of the legacy stream.
std::vector<Queue*>& all_queues() {
  static auto& queues = *new std::vector<Queue*>;  // outlives static streams
  return queues;
}

// Other ranks may need what this one has put into other streams, so those go on meanwhile, as they
// would on a device, up to their last task that needs other ranks.
void advance_joint_tasks() {
  for (Queue* queue : std::vector(all_queues())) queue->advance(queue->joint_end);
  sched_yield();
}

void run_until(Queue& queue, uint64_t position) {
  while (!queue.advance(position)) advance_joint_tasks();
}

}  // namespace
}  // namespace simt

// The tasks that a stream has recorded, in order.
struct EmulatedGraph {
  std::vector<std::function<void()>> tasks;
};

struct EmulatedStream {
  int device = simt::current_device();
  std::shared_ptr<simt::Queue> queue = std::make_shared<simt::Queue>();
  std::unique_ptr<EmulatedGraph> recording;

  EmulatedStream() { simt::all_queues().push_back(queue.get()); }
  ~EmulatedStream() { std::erase(simt::all_queues(), queue.get()); }
};

struct EmulatedEvent {
  std::shared_ptr<simt::Queue> queue;  // null before the event is recorded
  uint64_t position = 0;
  // The time at which the stream reached the event; null without timing.
  using Clock = std::chrono::steady_clock;
  std::shared_ptr<Clock::time_point> reached;

  bool has_finished() const { return queue == nullptr || queue->finished >= position; }
};

namespace simt {
namespace {

// The one stream that records, if any, and whether a call has made its recording useless.
cudaStream_t recorder = nullptr;
bool is_invalidated = false;

Queue& queue_of(cudaStream_t stream) {
  static auto& legacy = *new EmulatedStream;
  return stream ? *stream->queue : *legacy.queue;
}

}  // namespace

void check_launch(cudaStream_t stream) {
  switchyard::require(stream->device == current_device(),
                      "a kernel for a stream of device {} was launched with device {} current",
                      stream->device, current_device());
}

cudaError_t refuse_while_recording() {
  if (recorder == nullptr) return cudaSuccess;
  is_invalidated = true;
  return cudaErrorStreamCaptureUnsupported;
}

void enqueue(cudaStream_t stream, std::function<void()> task) {
  if (stream != nullptr && stream == recorder) {
    stream->recording->tasks.push_back(std::move(task));
    return;
  }
  queue_of(stream).tasks.push_back([task = std::move(task)] {
    task();
    return true;
  });
}

void enqueue_joint(cudaStream_t stream, std::function<bool()> task) {
  switchyard::require(stream != recorder, "a recorded stream has no work that needs other ranks");
  Queue& queue = queue_of(stream);
  queue.tasks.push_back(std::move(task));
  queue.joint_end = queue.end();
}

}  // namespace simt

cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t error = simt::enter("cudaDeviceSynchronize")) return error;
  if (const cudaError_t error = simt::refuse_while_recording()) return error;
  for (simt::Queue* queue : std::vector(simt::all_queues())) simt::run_until(*queue, queue->end());
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  if (const cudaError_t error = simt::enter("cudaStreamCreateWithFlags")) return error;
  *stream = new EmulatedStream;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = simt::enter("cudaStreamSynchronize")) return error;
  if (const cudaError_t error = simt::refuse_while_recording()) return error;
  simt::Queue& queue = simt::queue_of(stream);
  simt::run_until(queue, queue.end());
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  if (const cudaError_t error = simt::enter("cudaStreamWaitEvent")) return error;
  if (const cudaError_t error = simt::refuse_while_recording()) return error;
  if (event->queue == nullptr) return cudaSuccess;
  simt::Queue& queue = simt::queue_of(stream);
  queue.tasks.push_back(
      [awaited = event->queue, position = event->position] { return awaited->advance(position); });
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (const cudaError_t error = simt::enter("cudaStreamBeginCapture")) return error;
  if (const cudaError_t error = simt::refuse_while_recording()) return error;
  stream->recording = std::make_unique<EmulatedGraph>();
  simt::recorder = stream;
  simt::is_invalidated = false;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (const cudaError_t error = simt::enter("cudaStreamEndCapture")) return error;
  if (stream != simt::recorder) return cudaErrorInvalidValue;
  simt::recorder = nullptr;
  if (simt::is_invalidated) {
    stream->recording.reset();
    return cudaErrorStreamCaptureInvalidated;
  }
  *graph = stream->recording.release();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  if (const cudaError_t error = simt::enter("cudaGraphInstantiate")) return error;
  *executable = new EmulatedGraph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (const cudaError_t error = simt::enter("cudaGraphLaunch")) return error;
  simt::check_launch(stream);
  simt::Queue& queue = simt::queue_of(stream);
  for (const std::function<void()>& task : graph->tasks) {
    queue.tasks.push_back([task] {
      task();
      return true;
    });
  }
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  if (const cudaError_t error = simt::enter("cudaEventCreateWithFlags")) return error;
  *event = new EmulatedEvent;
  if (flags != cudaEventDisableTiming) {
    (*event)->reached = std::make_shared<EmulatedEvent::Clock::time_point>();
  }
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (const cudaError_t error = simt::enter("cudaEventDestroy")) return error;
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t error = simt::enter("cudaEventRecord")) return error;
  if (const cudaError_t error = simt::refuse_while_recording()) return error;
  if (event->reached) {
    simt::enqueue(stream, [reached = event->reached] { *reached = EmulatedEvent::Clock::now(); });
  }
  event->queue = stream->queue;
  event->position = stream->queue->end();
  return cudaSuccess;
}

namespace {
const std::thread::id main_thread = std::this_thread::get_id();
}  // namespace

// On the main thread every query runs one more task, so that a loop of queries ends. Other threads
// run no work.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t error = simt::enter("cudaEventQuery")) return error;
  if (event->has_finished()) return cudaSuccess;
  if (std::this_thread::get_id() != main_thread) return cudaErrorNotReady;
  if (!event->queue->advance(event->queue->finished + 1)) simt::advance_joint_tasks();
  return cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t error = simt::enter("cudaEventSynchronize")) return error;
  if (const cudaError_t error = simt::refuse_while_recording()) return error;
  if (event->queue) simt::run_until(*event->queue, event->position);
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->reached || !end->reached || !begin->queue || !end->queue) {
    return cudaErrorInvalidResourceHandle;
  }
  if (!begin->has_finished() || !end->has_finished()) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(*end->reached - *begin->reached).count();
  return cudaSuccess;
}

namespace {

int64_t pageable_reads = 0;

void copy_rows(std::byte* to, size_t to_pitch, const std::byte* from, size_t from_pitch,
               size_t width, size_t height) {
  const simt::DeviceMemoryAccess access;
  for (size_t row = 0; row < height; ++row) {
    std::memmove(to + row * to_pitch, from + row * from_pitch, width);
  }
}

}  // namespace

// As in CUDA, a copy from pageable memory has read the values when the call returns, and a copy to
// pageable memory has written them.
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  if (const cudaError_t error = simt::enter("cudaMemcpy2DAsync")) return error;
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
  if (simt::is_pageable(from) || simt::is_pageable(to)) {
    if (const cudaError_t error = simt::refuse_while_recording()) return error;
  }
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  if (simt::is_pageable(from)) {
    ++pageable_reads;
    std::vector<std::byte> values(width * height);
    copy_rows(values.data(), width, source, from_pitch, width, height);
    simt::enqueue(stream, [=, values = std::move(values)] {
      copy_rows(target, to_pitch, values.data(), width, width, height);
    });
  } else {
    simt::enqueue(stream, [=] { copy_rows(target, to_pitch, source, from_pitch, width, height); });
  }
  return simt::is_pageable(to) ? cudaStreamSynchronize(stream) : cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, num_bytes, from, num_bytes, num_bytes, 1, kind, stream);
}

cudaError_t cudaMemsetAsync(void* address, int byte, size_t num_bytes, cudaStream_t stream) {
  if (const cudaError_t error = simt::enter("cudaMemsetAsync")) return error;
  simt::enqueue(stream, [=] {
    const simt::DeviceMemoryAccess access;
    std::memset(address, byte, num_bytes);
  });
  return cudaSuccess;
}

int64_t simt::pageable_copies() { return pageable_reads; }
