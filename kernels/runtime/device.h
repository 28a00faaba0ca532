#pragma once

#include <string>
#include <string_view>

namespace switchyard {

enum class DeviceKind { cpu, cuda };

// Where memory lies and ops run. A value.
struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  // A device that only counts replaces one of its kind in planning: the program runs on it
  // unchanged, but uses neither memory nor compute time. On such a device:
  //   - Tensors, buffers and workspaces have sizes and addresses, but own no memory. A workspace
  //     counts bytes as on a real device. Reading or writing an address faults.
  //   - Ops check shapes and dtypes, take from the workspace what their bodies for this kind would
  //     take, tell the stream's observer, and do nothing else.
  //   - Streams, events and stopwatches do nothing; a copy to or from such a device does nothing.
  bool counts_only = false;

  // Whether the host reads its memory directly.
  bool is_host() const { return kind == DeviceKind::cpu && !counts_only; }
  // Whether CUDA runs its ops.
  bool runs_cuda() const { return kind == DeviceKind::cuda && !counts_only; }

  bool operator==(const Device&) const = default;
};

// A device of `kind` that only counts; the machine need not have a real one.
constexpr Device counting_device(DeviceKind kind) { return {kind, 0, /*counts_only=*/true}; }

std::string to_string(Device device);

// Reads "cpu", "cuda" (the first) or "cuda:1". Throws Error for any other text, and for cuda in a
// build without CUDA. It does not check that the device exists; making a stream does.
Device parse_device(std::string_view text);

// How many devices of a kind this process can use: 1 CPU; no CUDA device if the build has no CUDA
// or the machine has no driver.
int num_devices(DeviceKind kind);

// Throws Error that says what is missing, unless the device can be used.
void check_device(Device device);

// How many multiprocessors a CUDA device has. The grids of kernels, and so their scratch, depend on
// it. For a device that only counts: the number of the real device of the same index, or of an
// H200 if there is none.
int num_multiprocessors(Device device);

// Makes a CUDA device the calling thread's current device; the thread can launch kernels only on
// streams of that device.
void make_current(Device device);

// A name that is unique to a physical device of a machine: the PCI address of a CUDA device.
std::string physical_name(Device device);

// Returns when everything put into any stream of the device has finished.
void synchronize(Device device);

namespace cuda {
struct StreamState;  // kernels/cuda/support.h
struct EventState;
}  // namespace cuda

class Profiler;
class Stream;
class WorkObserver;

// A point in a stream's work that the host and other streams can wait for.
class Event {
 public:
  // With timing, recording costs a little more, and seconds_since can be called.
  enum class Timing { off, on };

  explicit Event(Device device = {}, Timing timing = Timing::off);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&&) = delete;

  // Records the point after all work put into `stream` so far.
  void record(Stream& stream);
  // Blocks the host until the recorded work has finished; returns at once if nothing was recorded.
  void synchronize();
  bool has_finished();
  // The time from the point that `begin` recorded to this event's point; waits for both. Needs
  // events of CUDA devices with timing; returns 0 on a device that only counts.
  double seconds_since(Event& begin);

 private:
  friend class Stream;
  Device device_;
  cuda::EventState* cuda_ = nullptr;  // CUDA devices only
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

  // Returns when everything put into the stream has finished. Throws Error if any of it failed.
  void synchronize();
  // Work put into the stream from now on begins after the work that `event` recorded has finished.
  void wait(const Event& event);

  // Measures the time of the parts of the stream's work (kernels/runtime/profile.h); may be null.
  // It must outlive the work, or be set back to null before it is destroyed.
  void set_profiler(Profiler* profiler) { profiler_ = profiler; }
  Profiler* profiler() const { return profiler_; }

  // Sees all work put into the stream (kernels/runtime/work_observer.h); may be null. It must
  // outlive the work, or be set back to null before it is destroyed.
  void set_observer(WorkObserver* observer) { observer_ = observer; }
  WorkObserver* observer() const { return observer_; }

  // CUDA devices only; for kernels/cuda/support.h.
  cuda::StreamState* cuda() const { return cuda_; }

 private:
  Device device_;
  Profiler* profiler_ = nullptr;
  cuda::StreamState* cuda_ = nullptr;
  WorkObserver* observer_ = nullptr;
};

}  // namespace switchyard
