#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "trainer/files/append_file.h"

namespace switchyard {

// A TensorBoard event file: records in TFRecord framing (length, masked CRC32C of the length, data,
// masked CRC32C of the data), each a tensorflow.Event (tensorboard/compat/proto/event.proto). For
// one rank.
class TensorboardWriter {
 public:
  using Scalar = std::pair<std::string, double>;  // tag, value

  // Starts a new file events.out.tfevents.* in the folder, which is made if need be. `last_step` is
  // the restored one: TensorBoard then hides what older files hold of later steps. Throws Error if
  // the file cannot be made.
  TensorboardWriter(const std::filesystem::path& folder, int64_t last_step);

  // All scalars of one step, as f32, with one wall time. The record is in the hands of the
  // operating system on return. Throws Error if it could not be written whole; the file then ends
  // as before.
  void add_scalars(int64_t step, std::span<const Scalar> scalars);

  const std::filesystem::path& path() const { return file_.path(); }

 private:
  void append_record(const std::string& event);

  AppendFile file_;
};

}  // namespace switchyard
