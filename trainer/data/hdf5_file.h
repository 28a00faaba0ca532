#pragma once

#include <hdf5.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "kernels/tensor.h"

namespace switchyard {

// Owns an identifier of the HDF5 library.
class Hdf5Handle {
 public:
  using Close = herr_t (*)(hid_t);

  Hdf5Handle() = default;
  Hdf5Handle(hid_t id, Close close) : id_(id), close_(close) {}
  ~Hdf5Handle() { reset(); }
  Hdf5Handle(Hdf5Handle&& other) noexcept;
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept;

  hid_t get() const { return id_; }

 private:
  void reset();

  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

// One-dimensional datasets and attributes of an HDF5 file. Every failure throws Error with the
// file, the object and the library's own reason.
class Hdf5File {
 public:
  static Hdf5File create(const std::filesystem::path& path);  // replaces what is there
  static Hdf5File open(const std::filesystem::path& path);    // for reading

  // An empty dataset that `append` makes longer, stored in pieces of `chunk` elements.
  void create_dataset(const std::string& name, DType dtype, int64_t chunk);
  // u16, i32, i64 and f32 as in memory; i32 stands for u32 where the values allow it.
  void append(const std::string& name, ConstTensorView values);
  void write_dataset(const std::string& name, ConstTensorView values);

  int64_t size(const std::string& name) const;
  // Elements [begin, begin + values.num_elements()), converted to the view's dtype.
  void read(const std::string& name, int64_t begin, TensorView values) const;

  void write_attribute(const std::string& name, const std::string& value);
  void write_attribute(const std::string& name, int64_t value);
  std::string text_attribute(const std::string& name) const;
  int64_t integer_attribute(const std::string& name) const;

  // Writes everything out and closes; throws if that fails, as on a full disk.
  void close();

  const std::filesystem::path& path() const { return path_; }

 private:
  Hdf5File(std::filesystem::path path, Hdf5Handle file);

  hid_t checked(hid_t id, const std::string& what) const;
  Hdf5Handle dataset(const std::string& name) const;

  std::filesystem::path path_;
  Hdf5Handle file_;
};

}  // namespace switchyard
