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

// HDF5 files by RAII, for one process at a time; HDF5's own header includes MPI's and stays out of
// sight. Every failure throws Error with the file, the object and HDF5's own reason; HDF5 prints
// nothing. Not thread-safe, as HDF5 is not.
namespace switchyard::hdf5 {

// How elements are stored, little-endian. bf16 goes as u16.
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

// An identifier of the HDF5 library, given back at the end of its life.
class Handle {
 public:
  Handle() = default;
  Handle(int64_t id, int (*close)(int64_t)) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept;
  Handle& operator=(Handle&& other) noexcept;
  ~Handle() { reset(); }

  int64_t id() const { return id_; }
  // False if HDF5 could not close it.
  bool reset() noexcept;

 private:
  int64_t id_ = -1;
  int (*close_)(int64_t) = nullptr;
};

// What carries attributes: a dataset, or a file (its root group). Setting one anew is an error.
// Strings have a fixed length in the file, because HDF5 checksums those and not the others.
class Object {
 public:
  bool has_attribute(const std::string& name) const;

  void set_int(const std::string& name, int64_t value);
  void set_ints(const std::string& name, std::span<const int64_t> values);
  void set_float(const std::string& name, double value);
  void set_string(const std::string& name, std::string_view value);

  // Throw if it is absent or of another kind.
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

// Valid until its file is closed. Elements have the same type in memory as in the file; another
// one is an error, never a conversion.
class Dataset : public Object {
 public:
  Element element() const { return element_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t num_elements() const;
  // Where the first element lies in the file, in bytes. Throws unless the dataset is contiguous.
  int64_t file_offset() const;

  // The slab in row-major order; its size must be that of the memory given.
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
  // The whole dataset.
  template <class T>
  void write(std::span<const T> values) {
    write(values, whole());
  }
  template <class T>
  std::vector<T> read_all() const {
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
// the slab `target`; both have as many elements.
struct VirtualSource {
  std::string file;  // relative to the folder of the virtual dataset's file
  std::string dataset;
  std::vector<int64_t> source_shape;
  Slab source;
  Slab target;
};

class File : public Object {
 public:
  // A new file; one of that name is replaced. HDF5's metadata are checksummed (format of 1.10) and
  // without times: the same calls give the same bytes.
  //   reserved_bytes  claimed on the disk at once, so that a full disk throws here
  static File create(const std::filesystem::path& path, int64_t reserved_bytes = 0);
  // To read. A damaged or truncated file throws.
  static File open(const std::filesystem::path& path);
  File(File&&) = default;
  // Would take the place that errors are kept in from the file that it closes.
  File& operator=(File&&) = delete;

  // Names may have slashes; the groups between are made. Contiguous. A full disk shows in the
  // dataset's `write` or in `close`.
  Dataset create_dataset(const std::string& name, Element element,
                         const std::vector<int64_t>& shape);
  // Elements that no source covers read as zero.
  void create_virtual_dataset(const std::string& name, Element element,
                              const std::vector<int64_t>& shape,
                              std::span<const VirtualSource> sources);
  bool contains(const std::string& name) const;
  Dataset dataset(const std::string& name) const;
  // All datasets, with their groups, sorted.
  std::vector<std::string> dataset_names() const;

  // The system has all of the file when this returns; throws if not. See write_durably for the
  // disk. Without this call the destructor closes the file and says nothing of errors.
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
