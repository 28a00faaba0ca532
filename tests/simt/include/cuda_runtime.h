#pragma once

// Stands in for the CUDA toolkit's header when .cu files are compiled for the host. It has the
// device language (tests/simt) and the functions of the runtime library that the project uses.

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "tests/simt/simt.h"

// ---- Language --------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Static variables can be shared memory because one block runs at a time.
#define __shared__ static
#define __constant__ static
#define __align__(n) alignas(n)

using dim3 = simt::Extent;
using uint3 = simt::Index;
#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_extent())
#define gridDim (simt::grid_extent())
constexpr int warpSize = 32;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned int x, y;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) {
  return {x, y, z, w};
}

// ---- Barriers, votes, shuffles ----------------------------------------------------------------

#define __syncthreads() simt::sync_block(__LINE__)

inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  const char nothing = 0;
  simt::meet_warp(mask, &nothing, 1);
}

namespace simt {

template <class T>
T value_of_lane(const std::byte* all, int from) {
  T value;
  std::memcpy(&value, all + static_cast<size_t>(from) * kSlotBytes, sizeof(T));
  return value;
}

// The value of lane `source`, or the lane's own value if the source is outside its segment
// (in_segment false).
template <class T>
T shuffle(uint32_t mask, T value, int source, bool in_segment) {
  const std::byte* all = meet_warp(mask, &value, sizeof(T));
  return in_segment ? value_of_lane<T>(all, source) : value;
}

}  // namespace simt

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  const int first = simt::lane() / width * width;
  return simt::shuffle(mask, value, first + (source % width + width) % width, true);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32) {
  const int source = simt::lane() ^ lane_mask;
  return simt::shuffle(mask, value, source, source / width <= simt::lane() / width);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned int delta, int width = 32) {
  const int source = simt::lane() - static_cast<int>(delta);
  return simt::shuffle(mask, value, source, source >= simt::lane() / width * width);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned int delta, int width = 32) {
  const int source = simt::lane() + static_cast<int>(delta);
  return simt::shuffle(mask, value, source, source < (simt::lane() / width + 1) * width);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  const std::byte* all = simt::meet_warp(mask, &predicate, sizeof(predicate));
  uint32_t votes = 0;
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1u) && simt::value_of_lane<int>(all, l)) votes |= 1u << l;
  }
  return votes;
}
// The lanes that have the same value.
inline uint32_t __match_any_sync(uint32_t mask, int value) {
  const std::byte* all = simt::meet_warp(mask, &value, sizeof(value));
  uint32_t same = 0;
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1u) && simt::value_of_lane<int>(all, l) == value) same |= 1u << l;
  }
  return same;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

namespace simt {
template <class T, class Combine>
T reduce(uint32_t mask, T value, Combine combine) {
  const std::byte* all = meet_warp(mask, &value, sizeof(T));
  T result = value;
  const int self = lane();
  for (int l = 0; l < 32; ++l) {
    if (l != self && (mask >> l & 1u)) result = combine(result, value_of_lane<T>(all, l));
  }
  return result;
}
}  // namespace simt

template <class T>
T __reduce_add_sync(uint32_t mask, T value) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4, "CUDA reduces 32-bit integers only");
  return simt::reduce(mask, value, [](T a, T b) { return static_cast<T>(a + b); });
}
template <class T>
T __reduce_max_sync(uint32_t mask, T value) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4, "CUDA reduces 32-bit integers only");
  return simt::reduce(mask, value, [](T a, T b) { return a > b ? a : b; });
}
template <class T>
T __reduce_min_sync(uint32_t mask, T value) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4, "CUDA reduces 32-bit integers only");
  return simt::reduce(mask, value, [](T a, T b) { return a < b ? a : b; });
}

inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Atomics: one thread runs at a time --------------------------------------------------------

// Integers only: sums of floating-point atomics depend on the order of threads.
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>, "floating-point atomics are not repeatable");
  const T before = *address;
  *address = static_cast<T>(before + value);
  return before;
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  const T before = *address;
  if (value > before) *address = value;
  return before;
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  const T before = *address;
  if (value < before) *address = value;
  return before;
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  const T before = *address;
  *address = before | value;
  return before;
}

// ---- Arithmetic --------------------------------------------------------------------------------

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned int __brev(unsigned int x) {
  unsigned int y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
  return y;
}
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>(static_cast<uint64_t>(a) * b >> 32);
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline unsigned int __float_as_uint(float x) { return std::bit_cast<unsigned int>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned int x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}
template <class T>
T __ldcs(const T* address) {
  simt::count_streamed_bytes(sizeof(T));
  return *address;
}
// CUDA has min and max without a namespace.
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

// ---- Runtime library ---------------------------------------------------------------------------

// Device memory is host memory that only kernels and copies may access (device_memory.cpp), so that
// host code that accesses it fails here as it would with a device. Managed memory is always
// accessible. Work of a stream runs when its result is waited for, not before (streams.cpp).

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorInvalidDevice = 101,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxGridDimY,
  cudaDevAttrMaxGridDimZ,
};
struct EmulatedStream;
struct EmulatedEvent;
struct EmulatedGraph;
using cudaGraph_t = EmulatedGraph*;
using cudaGraphExec_t = EmulatedGraph*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
using cudaStream_t = EmulatedStream*;
using cudaEvent_t = EmulatedEvent*;
constexpr unsigned int cudaStreamNonBlocking = 1;
constexpr unsigned int cudaEventDefault = 0;
constexpr unsigned int cudaEventDisableTiming = 2;
constexpr unsigned int cudaMemAttachGlobal = 1;

namespace simt {
int current_device();
// Whether this process has used the device, which takes half a gigabyte of a real one.
bool has_context(int device);
// Called by functions that use the current device; returns the error that a test has planned for
// the call (failures.h).
cudaError_t enter(const char* call);
// Throws unless the stream belongs to the current device, as CUDA demands of launches.
void check_launch(cudaStream_t stream);
// Whether a stream records; calls that CUDA refuses then end the recording and return the error.
cudaError_t refuse_while_recording();
// Adds a task to the end of the stream, or to the graph that it records.
void enqueue(cudaStream_t stream, std::function<void()> task);
// Adds a task that needs other ranks: it is called until it returns true, and must not block.
void enqueue_joint(cudaStream_t stream, std::function<bool()> task);
}  // namespace simt

const char* cudaGetErrorString(cudaError_t code);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaMalloc(void** address, size_t num_bytes);
cudaError_t cudaMallocManaged(void** address, size_t num_bytes, unsigned int flags);
cudaError_t cudaMallocHost(void** address, size_t num_bytes);
cudaError_t cudaFree(void* address);
cudaError_t cudaFreeHost(void* address);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* address, int byte, size_t num_bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags);
// While a stream records, work that is put into it is kept in a graph. What CUDA refuses then is
// refused here, too, and makes the recording useless: to wait for the device, to allocate or free
// its memory, copies from or to pageable memory, and events.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);
