#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// RAII wrappers of HDF5 files, for one process at a time. HDF5's own header includes MPI's, so this
// header does not include it. Every failure throws Error with the file, the object and HDF5's own
// reason; HDF5 prints nothing. The wrappers are not thread-safe, because HDF5 is not.
namespace switchyard::hdf5 {

// The type of stored elements, little-endian. bf16 is stored as u16.
enum class Element : uint8_t { u8, u16, u32, i32, i64, f32, f64 };

size_t size_of(Element element);
std::string_view to_string(Element element);

template <class T>
constexpr Element element_of();
template <>
constexpr Element element_of<uint8_t>() {
  return Element::u8;
}
template <>
constexpr Element element_of<uint16_t>() {
  return Element::u16;
}
template <>
constexpr Element element_of<uint32_t>() {
  return Element::u32;
}
template <>
constexpr Element element_of<int32_t>() {
  return Element::i32;
}
template <>
constexpr Element element_of<int64_t>() {
  return Element::i64;
}
template <>
constexpr Element element_of<float>() {
  return Element::f32;
}
template <>
constexpr Element element_of<double>() {
  return Element::f64;
}

// A box of a dataset: element i of dimension d lies in [offset[d], offset[d] + count[d]).
struct Slab {
  std::vector<int64_t> offset;
  std::vector<int64_t> count;
};

// Owns an identifier of the HDF5 library and closes it.
class Handle {
 public:
  Handle() = default;
  Handle(int64_t id, int (*close)(int64_t)) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept;
  Handle& operator=(Handle&& other) noexcept;
  ~Handle() { reset(); }

  int64_t id() const { return id_; }
  // Closes the identifier; false if HDF5 could not close it.
  bool reset() noexcept;

 private:
  int64_t id_ = -1;
  int (*close_)(int64_t) = nullptr;
};

// An object with attributes: a dataset, or a file (its root group). Setting an attribute twice is
// an error. Strings are stored with a fixed length, because HDF5 checksums only those.
class Object {
 public:
  bool has_attribute(const std::string& name) const;
  // Whether the attribute is there and is a string of fixed length, as get_string requires.
  bool has_string(const std::string& name) const;

  void set_int(const std::string& name, int64_t value);
  void set_ints(const std::string& name, std::span<const int64_t> values);
  void set_float(const std::string& name, double value);
  void set_string(const std::string& name, std::string_view value);

  // These throw if the attribute is absent or has another type.
  int64_t get_int(const std::string& name) const;
  std::vector<int64_t> get_ints(const std::string& name) const;
  double get_float(const std::string& name) const;
  std::string get_string(const std::string& name) const;

  // "file.h5: /tensors/weight", for messages.
  const std::string& where() const { return where_; }

 protected:
  Object(Handle handle, std::string where) : handle_(std::move(handle)), where_(std::move(where)) {}

  Handle handle_;
  std::string where_;
};

// A dataset is valid until its file is closed. Elements must have the same type in memory as in the
// file; another type is an error, and elements are never converted. So is a layout that Switchyard
// does not write: chunks, of which a small file may claim large ones, or a part of another file.
class Dataset : public Object {
 public:
  Element element() const { return element_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t num_elements() const;
  // Byte offset of the first element in the file. Throws unless the dataset is contiguous and the
  // file holds all of it.
  int64_t file_offset() const;
  // The same check. A file may claim any shape, so memory for elements is taken after it.
  void require_stored() const { file_offset(); }

  // These write or read the slab in row-major order; `bytes` must have its size.
  void write_bytes(std::span<const std::byte> bytes, const Slab& slab);
  void read_bytes(std::span<std::byte> bytes, const Slab& slab) const;

  template <class T>
  void write(std::span<const T> values, const Slab& slab) {
    check_element(element_of<T>());
    write_bytes(std::as_bytes(values), slab);
  }
  template <class T>
  void read(std::span<T> values, const Slab& slab) const {
    check_element(element_of<T>());
    read_bytes(std::as_writable_bytes(values), slab);
  }
  // These write or read the whole dataset; reading throws for a virtual one.
  template <class T>
  void write(std::span<const T> values) {
    write(values, whole());
  }
  template <class T>
  std::vector<T> read_all() const {
    require_stored();
    std::vector<T> values(static_cast<size_t>(num_elements()));
    read(std::span<T>(values), whole());
    return values;
  }
  Slab whole() const { return {std::vector<int64_t>(shape_.size(), 0), shape_}; }

 private:
  friend class File;
  Dataset(Handle handle, std::string where, const int* write_error);

  void check_element(Element wanted) const;
  void check_slab(const Slab& slab, size_t num_bytes) const;

  Element element_ = Element::u8;
  std::vector<int64_t> shape_;
  const int* write_error_;  // the file's
};

// A part of a virtual dataset: the slab `source` of a dataset of shape `source_shape` appears as
// the slab `target`; both have the same number of elements.
struct VirtualSource {
  std::string file;  // relative to the folder of the virtual dataset's file
  std::string dataset;
  std::vector<int64_t> source_shape;
  Slab source;
  Slab target;
};

class File : public Object {
 public:
  // Creates a file and replaces an existing one. HDF5's metadata are checksummed (format of 1.10)
  // and hold no times, so the same calls give the same bytes.
  //   reserved_bytes  reserved on the disk at once, so that a full disk throws here
  static File create(const std::filesystem::path& path, int64_t reserved_bytes = 0);
  // Opens a file for reading. Throws if it is damaged or truncated.
  static File open(const std::filesystem::path& path);
  File(File&&) = default;
  // Assignment would free write_error_ before the overwritten file is closed.
  File& operator=(File&&) = delete;

  // Makes a contiguous dataset, and the groups in its name, which are separated by slashes. If the
  // disk is full, the dataset's `write` or `close` throws.
  Dataset create_dataset(const std::string& name, Element element,
                         const std::vector<int64_t>& shape);
  // Elements that no source covers read as zero.
  void create_virtual_dataset(const std::string& name, Element element,
                              const std::vector<int64_t>& shape,
                              std::span<const VirtualSource> sources);
  bool contains(const std::string& name) const;
  Dataset dataset(const std::string& name) const;
  // The names of all datasets, with their groups, sorted.
  std::vector<std::string> dataset_names() const;

  // On return the operating system has the whole file; throws if not. write_durably flushes it to
  // the disk. Without this call the destructor closes the file and ignores errors.
  void close();

  const std::filesystem::path& path() const { return path_; }

 private:
  File(Handle file, Handle root, std::filesystem::path path, std::unique_ptr<int> write_error);

  void make_groups(const std::string& name);

  std::unique_ptr<int> write_error_;  // see write_driver.h; outlives file_
  Handle file_;
  std::filesystem::path path_;
};

}  // namespace switchyard::hdf5
