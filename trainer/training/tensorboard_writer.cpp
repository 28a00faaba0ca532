#include "trainer/training/tensorboard_writer.h"

#include <fmt/core.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <span>

#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"

namespace switchyard {
namespace {

static_assert(std::endian::native == std::endian::little, "both formats are little-endian");

// The part of protocol buffers that an Event needs: a field's key is its number and wire type.
enum class Wire : uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

void put_key(std::string& out, int field, Wire wire) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire));
}

template <class T>
void put_fixed(std::string& out, T value) {
  const auto bytes = std::bit_cast<std::array<char, sizeof(T)>>(value);
  out.append(bytes.data(), bytes.size());
}

void put_bytes(std::string& out, int field, const std::string& bytes) {
  put_key(out, field, Wire::bytes);
  put_varint(out, bytes.size());
  out += bytes;
}

// message Event { double wall_time = 1; int64 step = 2; string file_version = 3;
//                 Summary summary = 5; SessionLog session_log = 7; }
std::string event(int64_t step) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  std::string out;
  put_key(out, 1, Wire::fixed64);
  put_fixed(out, std::chrono::duration<double>(now).count());
  put_key(out, 2, Wire::varint);
  put_varint(out, static_cast<uint64_t>(step));
  return out;
}

std::string version_event() {
  std::string out = event(0);
  put_bytes(out, 3, "brain.Event:2");
  return out;
}

// message SessionLog { SessionStatus status = 1; }, START = 1
std::string session_start_event(int64_t step) {
  std::string log;
  put_key(log, 1, Wire::varint);
  put_varint(log, 1);
  std::string out = event(step);
  put_bytes(out, 7, log);
  return out;
}

// message Summary { repeated Value value = 1; }
// message Value { string tag = 1; float simple_value = 2; }
std::string scalars_event(int64_t step, std::span<const TensorboardWriter::Scalar> scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    put_bytes(value, 1, tag);
    put_key(value, 2, Wire::fixed32);
    put_fixed(value, static_cast<float>(number));
    put_bytes(summary, 1, value);
  }
  std::string out = event(step);
  put_bytes(out, 5, summary);
  return out;
}

// TFRecord rotates and offsets its checksums, so that data which holds checksums itself does not
// cancel them (tensorflow/core/lib/hash/crc32c.h).
uint32_t masked_crc32c(const std::string& bytes) {
  return std::rotr(crc32c(std::as_bytes(std::span(bytes))), 15) + 0xa282ead8u;
}

std::filesystem::path new_event_file(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  require(!error, "cannot make {}: {}", folder.string(), error.message());
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  for (int attempt = 0;; ++attempt) {
    // TensorBoard reads a folder's files in the order of their names.
    const auto path = folder / fmt::format("events.out.tfevents.{:010}.{}.{}.{}", seconds,
                                           host.data(), ::getpid(), attempt);
    if (!std::filesystem::exists(path)) return path;
  }
}

}  // namespace

TensorboardWriter::TensorboardWriter(const std::filesystem::path& folder, int64_t last_step)
    : file_(new_event_file(folder), /*size=*/0) {
  append_record(version_event());
  append_record(session_start_event(last_step + 1));
}

void TensorboardWriter::add_scalars(int64_t step, std::span<const Scalar> scalars) {
  append_record(scalars_event(step, scalars));
}

void TensorboardWriter::append_record(const std::string& event) {
  std::string length, record;
  put_fixed(length, static_cast<uint64_t>(event.size()));
  record = length;
  put_fixed(record, masked_crc32c(length));
  record += event;
  put_fixed(record, masked_crc32c(event));
  file_.append(record);
}

}  // namespace switchyard
