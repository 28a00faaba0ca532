#pragma once

#include <string>
#include <string_view>

namespace switchyard {

enum class DeviceKind { cpu, cuda };

// Where memory lies and ops run. A value.
struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  // A device that only counts stands in for one of its kind in planning: the program runs on it
  // unchanged, and costs neither memory nor work. What holds there:
  //   - Tensors, buffers and workspaces have sizes and addresses, and own no memory; a workspace
  //     counts as that of a real device would. Addresses must not be read or written: doing so
  //     faults.
  //   - Ops check shapes and dtypes as ever, take from the workspace what their bodies for this
  //     kind would, add their floating point operations to the stream's Tally, and do nothing else.
  //   - Streams, events and stopwatches do nothing; a copy to or from such a device does nothing.
  bool counts_only = false;

  // Whether the host reads its memory directly.
  bool is_host() const { return kind == DeviceKind::cpu && !counts_only; }
  // Whether CUDA does its work.
  bool runs_cuda() const { return kind == DeviceKind::cuda && !counts_only; }

  bool operator==(const Device&) const = default;
};

// A device that counts for `kind`; no such device needs to be there.
constexpr Device counting_device(DeviceKind kind) { return {kind, 0, /*counts_only=*/true}; }

std::string to_string(Device device);

// "cpu", "cuda" (the first) or "cuda:1". Throws Error for anything else, and for cuda in a build
// without it; whether the device is there is known when a stream is made.
Device parse_device(std::string_view text);

// How many of a kind this process can use: 1 CPU; no CUDA device where the build or the driver
// lacks it.
int num_devices(DeviceKind kind);

// Throws Error that says what is missing, unless the device can be used.
void check_device(Device device);

// How many multiprocessors a CUDA device has: kernels size their grids, and so their scratch, by
// it. A device that only counts has those of the device of its index, or of an H200 where there is
// none.
int num_multiprocessors(Device device);

// Makes a CUDA device the calling thread's; kernels can be launched on streams of that device only.
void make_current(Device device);

// Tells the physical devices of one machine apart: the PCI address of a CUDA device.
std::string physical_name(Device device);

// Returns when everything put into any stream of the device has finished.
void synchronize(Device device);

namespace cuda {
struct StreamState;  // kernels/cuda/support.h
struct EventState;
}  // namespace cuda

class Profiler;
class Stream;

// A point in a stream's work that others can wait for.
class Event {
 public:
  // With timing, recording costs a little more, and seconds_since can be asked.
  enum class Timing { off, on };

  explicit Event(Device device = {}, Timing timing = Timing::off);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&&) = delete;

  // After all that `stream` was given so far.
  void record(Stream& stream);
  // Blocks the host until the recorded work has finished; returns at once if nothing was recorded.
  void synchronize();
  bool has_finished();
  // From what `begin` recorded to what this one did; waits for both. Events of CUDA devices with
  // timing only; 0 on a device that only counts.
  double seconds_since(Event& begin);

 private:
  friend class Stream;
  Device device_;
  cuda::EventState* cuda_ = nullptr;  // CUDA devices only
};

// Floating point operations of matrix products: a multiplication and an addition are two.
struct Tally {
  double products = 0.0;
  // Attention's products of queries, keys and values (in the backward pass of gradients too, but
  // not those that make the probabilities anew). A token sees (seq_len + 1) / 2 keys in the mean:
  // the causal mask is counted, documents are not.
  double attention = 0.0;
};

// An ordered queue of work on one device; the first argument of every op. Ops on the CPU have
// finished when they return; ops on a CUDA device may not have begun.
class Stream {
 public:
  explicit Stream(Device device = {});
  ~Stream();

  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }

  // Returns when everything put into the stream has finished. Throws Error for what failed in it.
  void synchronize();
  // What is put into the stream from now on begins when what `event` recorded has finished.
  void wait(const Event& event);

  // What takes the time of the parts of its work (kernels/runtime/profile.h), or null. It must
  // outlive the work, or be taken away again.
  void set_profiler(Profiler* profiler) { profiler_ = profiler; }
  Profiler* profiler() const { return profiler_; }

  // What the ops put into the stream have added up to; the caller may set it back to zero. Null
  // unless the device only counts.
  Tally* tally() { return device_.counts_only ? &tally_ : nullptr; }

  // CUDA devices only; for kernels/cuda/support.h.
  cuda::StreamState* cuda() const { return cuda_; }

 private:
  Device device_;
  Profiler* profiler_ = nullptr;
  cuda::StreamState* cuda_ = nullptr;
  Tally tally_;
};

}  // namespace switchyard
