#include "kernels/runtime/device.h"

#include <charconv>
#include <utility>

#include "kernels/cuda/backend.h"
#include "kernels/runtime/check.h"

namespace switchyard {

namespace {

// The number of an H100 or H200, for planning on a machine without a CUDA device.
constexpr int kUsualMultiprocessors = 132;

int parse_index(std::string_view text, std::string_view digits) {
  int index = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  require(error == std::errc() && end == digits.data() + digits.size() && index >= 0,
          "unknown device '{}': use cpu, cuda, or cuda:N", text);
  return index;
}

}  // namespace

std::string to_string(Device device) {
  const std::string name =
      device.kind == DeviceKind::cpu ? "cpu" : fmt::format("cuda:{}", device.index);
  return device.counts_only ? name + " (counted only)" : name;
}

int num_devices(DeviceKind kind) { return kind == DeviceKind::cpu ? 1 : cuda::num_devices(); }

void check_device(Device device) {
  if (device.runs_cuda()) cuda::check_device(device);
}

void make_current(Device device) {
  if (device.runs_cuda()) cuda::make_current(device);
}

std::string physical_name(Device device) {
  return device.runs_cuda() ? cuda::physical_name(device) : to_string(device);
}

void synchronize(Device device) {
  if (device.runs_cuda()) cuda::synchronize(device);
}

int num_multiprocessors(Device device) {
  const bool is_there = device.runs_cuda() || device.index < num_devices(DeviceKind::cuda);
  return is_there ? cuda::num_multiprocessors(device) : kUsualMultiprocessors;
}

Device parse_device(std::string_view text) {
  constexpr std::string_view kCuda = "cuda";
  if (text == "cpu") return {};
  if (!cuda::is_in_build()) {
    require(!text.starts_with(kCuda),
            "device {} is not in this build: it was compiled for the CPU only; use cpu", text);
    fail("unknown device '{}': use cpu", text);
  }
  require(text.starts_with(kCuda) && (text == kCuda || text[kCuda.size()] == ':'),
          "unknown device '{}': use cpu, cuda, or cuda:N", text);
  return {DeviceKind::cuda, text == kCuda ? 0 : parse_index(text, text.substr(kCuda.size() + 1))};
}

Stream::Stream(Device device) : device_(device) {
  if (device.runs_cuda()) cuda_ = cuda::make_stream_state(device);
}

Stream::~Stream() { cuda::destroy(cuda_); }

void Stream::synchronize() {
  if (cuda_) cuda::synchronize(*cuda_);
}

void Stream::wait(const Event& event) {
  require(device_ == event.device_, "a stream of {} cannot wait for an event of {}",
          to_string(device_), to_string(event.device_));
  if (cuda_) cuda::wait(*cuda_, *event.cuda_);
}

Event::Event(Device device, Timing timing) : device_(device) {
  if (device.runs_cuda()) {
    cuda_ = cuda::make_event_state(device, timing == Timing::on);
  }
}

Event::~Event() { cuda::destroy(cuda_); }

void Event::record(Stream& stream) {
  require(device_ == stream.device(), "an event of {} cannot be recorded in a stream of {}",
          to_string(device_), to_string(stream.device()));
  if (cuda_) cuda::record(*cuda_, *stream.cuda());
}

void Event::synchronize() {
  if (cuda_) cuda::synchronize(*cuda_);
}

bool Event::has_finished() { return cuda_ == nullptr || cuda::has_finished(*cuda_); }

double Event::seconds_since(Event& begin) {
  if (device_.counts_only) return 0.0;
  require(cuda_ != nullptr && begin.cuda_ != nullptr,
          "events of the CPU have no time; use Stopwatch");
  return cuda::seconds_between(*begin.cuda_, *cuda_);
}

Event::Event(Event&& other) noexcept
    : device_(other.device_), cuda_(std::exchange(other.cuda_, nullptr)) {}

}  // namespace switchyard
