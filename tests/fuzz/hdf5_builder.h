#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/files/crc32c.h"
#include "trainer/files/hdf5.h"

namespace switchyard::fuzz {

// Builds HDF5 files that HDF5 accepts, but whose contents are other ones than a reader expects,
// where the input says so: attributes and datasets of other types, shapes and layouts, or none.
// HDF5's own checksums keep altered bytes from our readers, so these files test what comes behind
// them. An input of zeros builds the expected file.
class Hdf5Builder {
 public:
  Hdf5Builder(const std::filesystem::path& path, FuzzedDataProvider& input);
  ~Hdf5Builder();
  Hdf5Builder(const Hdf5Builder&) = delete;
  Hdf5Builder& operator=(const Hdf5Builder&) = delete;

  // Of the file, until a dataset is made, and of that dataset afterwards.
  void attribute(const char* name, int64_t expected);
  void attribute(const char* name, std::string_view expected);
  void attribute(const char* name, const std::vector<int64_t>& expected);

  // Returns the values that the dataset holds, of which the input may have altered some.
  template <class T>
  std::vector<T> dataset(const std::string& name, std::vector<uint64_t> shape,
                         std::vector<T> values) {
    alter(std::as_writable_bytes(std::span(values)));
    make_dataset(name, hdf5::element_of<T>(), std::move(shape), values.data());
    return values;
  }

 private:
  void alter(std::span<std::byte> bytes);
  // Returns whether the attribute shall be as expected; otherwise it has been made as the input
  // says, or not.
  bool as_expected(const char* name);
  void any_attribute(const char* name, int kind);
  void put(const char* name, int64_t type, int64_t space, const void* value);
  void make_dataset(const std::string& name, hdf5::Element element, std::vector<uint64_t> shape,
                    const void* values);
  std::vector<uint64_t> any_shape();

  FuzzedDataProvider& input_;
  int64_t file_, object_;
};

template <class T>
uint32_t checksum(const std::vector<T>& values) {
  return crc32c(std::as_bytes(std::span(values)));
}

}  // namespace switchyard::fuzz
