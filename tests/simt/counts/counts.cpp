// `ld --wrap=f` sends every call of f from another file to __wrap_f, and calls of __real_f to f.
#include "tests/simt/counts/counts.h"

#include <cuda_runtime.h>

#include <utility>

namespace switchyard::test {
namespace {

Counts counts;
bool has_new_work = false;

void count(int64_t& what) {
  ++what;
  has_new_work = true;
}
void count_wait() {
  if (std::exchange(has_new_work, false)) ++counts.waits;
}

}  // namespace

Counts counts_so_far() { return counts; }

}  // namespace switchyard::test

using namespace switchyard::test;  // NOLINT: the functions below have the emulation's names

#define SWITCHYARD_COUNTED(symbol, result, name, ...)       \
  result real_##name(__VA_ARGS__) asm("__real_" symbol);    \
  result wrapped_##name(__VA_ARGS__) asm("__wrap_" symbol); \
  result wrapped_##name(__VA_ARGS__)

// A launch checks its stream, then adds a task; libraries only add tasks.
SWITCHYARD_COUNTED("_ZN4simt12check_launchEP14EmulatedStream", void, check_launch,
                   cudaStream_t stream) {
  real_check_launch(stream);
  ++counts.kernels;
  --counts.libraries;
}
SWITCHYARD_COUNTED("_ZN4simt7enqueueEP14EmulatedStreamSt8functionIFvvEE", void, enqueue,
                   cudaStream_t stream, std::function<void()> task) {
  count(counts.libraries);
  real_enqueue(stream, std::move(task));
}
// An operation of NCCL.
SWITCHYARD_COUNTED("_ZN4simt13enqueue_jointEP14EmulatedStreamSt8functionIFbvEE", void,
                   enqueue_joint, cudaStream_t stream, std::function<bool()> task) {
  count(counts.libraries);
  real_enqueue_joint(stream, std::move(task));
}

SWITCHYARD_COUNTED("_Z17cudaMemcpy2DAsyncPvmPKvmmm14cudaMemcpyKindP14EmulatedStream", cudaError_t,
                   copy_2d, void* to, size_t to_pitch, const void* from, size_t from_pitch,
                   size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  count(counts.copies);
  if (simt::is_pageable(to)) count_wait();
  return real_copy_2d(to, to_pitch, from, from_pitch, width, height, kind, stream);
}
SWITCHYARD_COUNTED("_Z15cudaMemcpyAsyncPvPKvm14cudaMemcpyKindP14EmulatedStream", cudaError_t, copy,
                   void* to, const void* from, size_t num_bytes, cudaMemcpyKind kind,
                   cudaStream_t stream) {
  count(counts.copies);
  if (simt::is_pageable(to)) count_wait();
  return real_copy(to, from, num_bytes, kind, stream);
}
SWITCHYARD_COUNTED("_Z15cudaMemsetAsyncPvimP14EmulatedStream", cudaError_t, fill, void* address,
                   int byte, size_t num_bytes, cudaStream_t stream) {
  count(counts.fills);
  return real_fill(address, byte, num_bytes, stream);
}

SWITCHYARD_COUNTED("_Z15cudaGraphLaunchP13EmulatedGraphP14EmulatedStream", cudaError_t,
                   launch_graph, cudaGraphExec_t graph, cudaStream_t stream) {
  count(counts.graphs);
  return real_launch_graph(graph, stream);
}

SWITCHYARD_COUNTED("_Z21cudaStreamSynchronizeP14EmulatedStream", cudaError_t, synchronize_stream,
                   cudaStream_t stream) {
  count_wait();
  return real_synchronize_stream(stream);
}
SWITCHYARD_COUNTED("_Z20cudaEventSynchronizeP13EmulatedEvent", cudaError_t, synchronize_event,
                   cudaEvent_t event) {
  count_wait();
  return real_synchronize_event(event);
}
SWITCHYARD_COUNTED("_Z21cudaDeviceSynchronizev", cudaError_t, synchronize_device) {
  count_wait();
  return real_synchronize_device();
}

// Every message of a collective over MPI goes through this call (parallel/mpi_messages.h).
SWITCHYARD_COUNTED(
    "_ZN10switchyard11MpiMessages8exchangeERKSt8functionIFNS_15ConstTensorViewEmEERKS1_IFNS_"
    "10TensorV"
    "iewEmEE",
    void, mpi_exchange, void* self, const void* sent, const void* received) {
  ++counts.mpi;
  return real_mpi_exchange(self, sent, received);
}
