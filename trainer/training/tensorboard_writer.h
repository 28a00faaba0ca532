#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "trainer/files/append_file.h"

namespace switchyard {

// A TensorBoard event file: records in TFRecord framing (length, masked CRC32C of the length, data,
// masked CRC32C of the data), each a tensorflow.Event (tensorboard/compat/proto/event.proto). Used
// by one rank.
class TensorboardWriter {
 public:
  using Scalar = std::pair<std::string, double>;  // tag, value

  // Starts a new file events.out.tfevents.* in the folder, and makes a missing folder. `last_step`
  // is the restored one: TensorBoard then hides the later steps of older files. Throws Error if the
  // file cannot be made.
  TensorboardWriter(const std::filesystem::path& folder, int64_t last_step);

  // Writes all scalars of one step, as f32, with one wall time. On return the operating system has
  // the record. Throws Error if it could not be written whole; the file then ends as before.
  void add_scalars(int64_t step, std::span<const Scalar> scalars);

  const std::filesystem::path& path() const { return file_.path(); }

 private:
  void append_record(const std::string& event);

  AppendFile file_;
};

}  // namespace switchyard
