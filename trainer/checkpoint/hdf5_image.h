#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "kernels/tensor.h"
#include "trainer/checkpoint/file_io.h"
#include "trainer/checkpoint/piece_geometry.h"

namespace switchyard {

struct Hdf5Attribute {
  std::string name;
  std::variant<int64_t, uint32_t, std::vector<int64_t>, std::string> value;
};

// Elements of a one-dimensional dataset in another file, and the rectangle that they are.
struct VirtualSource {
  std::string file;          // relative to the folder of the file that shows it
  std::string dataset;       // path in it
  int64_t num_elements = 0;  // of the whole dataset
  Slab slab;
};

// An HDF5 file on its way to the disk. The library only ever writes to memory, and only what
// describes the data: a file that it cannot flush, because the disk is full, it cannot close
// either, and HDF5 1.10 then ends the process with a segmentation fault at exit. The elements go
// to the disk directly, from where they are.
class Hdf5Image {
 public:
  Hdf5Image();
  ~Hdf5Image();
  Hdf5Image(const Hdf5Image&) = delete;
  Hdf5Image& operator=(const Hdf5Image&) = delete;

  void set_attributes(std::span<const Hdf5Attribute> attributes);
  // A one-dimensional f32 dataset; its groups are made. Returns the address of its first element.
  // `data` must stay until `write`.
  int64_t add_dataset(const std::string& path, std::span<const float> data,
                      std::span<const Hdf5Attribute> attributes);
  // An f32 dataset whose elements are in other files.
  void add_virtual_dataset(const std::string& path, const Shape& shape,
                           std::span<const VirtualSource> sources);

  // Completes the image and writes it. Last call.
  void write(OutputFile& file);

 private:
  struct Memory;
  struct RawData {
    int64_t address;
    std::span<const std::byte> bytes;
  };

  void copy_description(int64_t begin, int64_t end, OutputFile& file) const;

  std::unique_ptr<Memory> memory_;
  std::vector<RawData> raw_data_;
};

}  // namespace switchyard
