// The emulated CUDA runtime library: streams, events and copies.
//
// The work of a stream runs only when its result is needed: when the host synchronises, or when
// another stream that waits for an event runs. A consumer that does not wait therefore reads old
// values here, and memory that is reused too early is overwritten before it was read. On a device
// both errors show seldom, and never under a debugger.
#include <cuda_runtime.h>

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

// Tasks in order, counted since the stream was made. A task that waits for another process has
// begun but not finished, and the thread of the watchdog must see that.
struct Queue {
  std::deque<std::function<void()>> tasks;
  uint64_t begun = 0;
  std::atomic<uint64_t> finished = 0;

  uint64_t end() const { return begun + tasks.size(); }
  void run_until(uint64_t position) {
    while (begun < position) {
      const std::function<void()> task = std::move(tasks.front());
      tasks.pop_front();
      ++begun;
      task();
      ++finished;
    }
  }
};

// The queues of existing streams and of the legacy stream.
std::vector<Queue*>& all_queues() {
  static auto& queues = *new std::vector<Queue*>;  // outlives static streams
  return queues;
}

}  // namespace
}  // namespace simt

struct EmulatedStream {
  int device = simt::current_device();
  std::shared_ptr<simt::Queue> queue = std::make_shared<simt::Queue>();

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

void enqueue(cudaStream_t stream, std::function<void()> task) {
  queue_of(stream).tasks.push_back(std::move(task));
}

}  // namespace simt

cudaError_t cudaDeviceSynchronize() {
  for (simt::Queue* queue : std::vector(simt::all_queues())) queue->run_until(queue->end());
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  *stream = new EmulatedStream;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  simt::Queue& queue = simt::queue_of(stream);
  queue.run_until(queue.end());
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  if (event->queue == nullptr) return cudaSuccess;
  simt::enqueue(stream,
                [queue = event->queue, position = event->position] { queue->run_until(position); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  *event = new EmulatedEvent;
  if (flags != cudaEventDisableTiming) {
    (*event)->reached = std::make_shared<EmulatedEvent::Clock::time_point>();
  }
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
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
  if (event->has_finished()) return cudaSuccess;
  if (std::this_thread::get_id() != main_thread) return cudaErrorNotReady;
  event->queue->run_until(event->queue->begun + 1);
  return cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->queue) event->queue->run_until(event->position);
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
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  if (simt::is_pageable(from)) {
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
  simt::enqueue(stream, [=] {
    const simt::DeviceMemoryAccess access;
    std::memset(address, byte, num_bytes);
  });
  return cudaSuccess;
}
